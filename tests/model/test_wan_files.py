"""Wan's autoencoder from files: names of its original, of diffusers, and loading."""

import pytest
import torch
from decmem_env.model import checkpoint
from decmem_env.model.config import preset
from decmem_env.model.conversion import convert
from decmem_env.model.importing import plan_import
from decmem_env.model.transformer import WorldTransformer
from decmem_env.model.wan_autoencoder import WanAutoencoder
from decmem_env.model.wan_files import load_wan_autoencoder
from decmem_env.model.wan_size import WanAutoencoderConfig
from decmem_env.model.wan_vae_keys import to_native
from decmem_env.model.weight_files import CheckpointError
from safetensors.torch import save_file

SIZE = WanAutoencoderConfig(height=16, width=24, base_width=4)
RESIDUAL = [f"residual.{i}" for i in ("0.gamma", "2.weight", "2.bias", "3.gamma", "6.weight", "6.bias")]
RESAMPLE = ["resample.1.weight", "resample.1.bias"]
TIME = ["time_conv.weight", "time_conv.bias"]
SHORTCUT = ["shortcut.weight", "shortcut.bias"]


def original_names():
    """Names in `Wan2.1_VAE.pth`, as its code makes them."""
    names = [f"conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    for side in ("encoder", "decoder"):
        names += [f"{side}.{part}" for part in ("conv1.weight", "conv1.bias", "head.0.gamma", "head.2.weight")]
        names.append(f"{side}.head.2.bias")
        names += [f"{side}.middle.{i}.{part}" for i in (0, 2) for part in RESIDUAL]
        attention = ("norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias")
        names += [f"{side}.middle.1.{part}" for part in attention]
    for i in range(11):
        parts = RESAMPLE + (TIME if i in (5, 8) else []) if i in (2, 5, 8) else RESIDUAL
        names += [f"encoder.downsamples.{i}.{part}" for part in parts + (SHORTCUT if i in (3, 6) else [])]
    for i in range(15):
        parts = RESAMPLE + (TIME if i in (3, 7) else []) if i in (3, 7, 11) else RESIDUAL
        names += [f"decoder.upsamples.{i}.{part}" for part in parts + (SHORTCUT if i == 4 else [])]
    return names


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return WanAutoencoder(SIZE).eval().requires_grad_(False)


def test_every_name_is_known(autoencoder):
    originals = original_names()
    assert len(originals) == 194
    assert sorted(to_native(name) for name in originals) == sorted(autoencoder.state_dict())
    assert all(to_native(name) == name for name in autoencoder.state_dict())
    for foreign in ("blocks.0.self_attn.q.weight", "encoder.other.weight", "conv3.weight", "decoder.0.weight"):
        assert to_native(foreign) is None


def test_names_agree_with_diffusers():
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    converted = utils.convert_wan_vae_to_diffusers({name: name for name in original_names()})
    assert {original: name for name, original in converted.items()} == {n: to_native(n) for n in original_names()}


def test_loads_both_layouts(autoencoder, tmp_path):
    state = autoencoder.state_dict()
    torch.save({name: state[to_native(name)] for name in original_names()}, tmp_path / "Wan2.1_VAE.pth")
    (tmp_path / "vae").mkdir()
    save_file(state, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    frames = torch.randint(0, 256, (5, 16, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = autoencoder.encode(frames)
    for path in (tmp_path / "Wan2.1_VAE.pth", tmp_path, tmp_path / "vae" / "diffusion_pytorch_model.safetensors"):
        loaded = load_wan_autoencoder(path, SIZE)
        assert torch.equal(loaded.encode(frames), expected) and not loaded.training
        assert torch.equal(loaded.decode(expected), autoencoder.decode(expected))
    half = load_wan_autoencoder(tmp_path, SIZE, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.mean.dtype == torch.float32
    assert float((half.encode(frames) - expected).norm() / expected.norm()) < 0.05


def test_conversion_makes_a_checkpoint_with_it(tmp_path):
    config = preset("wan-debug")
    torch.manual_seed(1)
    whole = WanAutoencoder(config.autoencoder).eval().requires_grad_(False)
    state = whole.state_dict()
    torch.save({name: state[to_native(name)] for name in original_names()}, tmp_path / "Wan2.1_VAE.pth")
    transformer = {name: tensor.contiguous() for name, tensor in WorldTransformer(config).state_dict().items()}
    save_file(transformer, tmp_path / "model.safetensors")
    convert(plan_import(tmp_path / "model.safetensors", config), tmp_path / "out", config)
    loaded = checkpoint.load(str(tmp_path / "out"), torch.device("cpu"))
    assert isinstance(loaded.autoencoder, WanAutoencoder) and loaded.config == config
    frames = torch.randint(0, 256, (5, 64, 112, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(loaded.autoencoder.encode(frames), whole.encode(frames))
    checkpoint.save(tmp_path / "again", config, loaded.transformer, loaded.autoencoder)
    again = checkpoint.load(str(tmp_path / "again"), torch.device("cpu")).autoencoder
    assert torch.equal(again.quant_conv.weight, whole.quant_conv.weight.half().float())


def test_refuses_what_does_not_fit(autoencoder, tmp_path):
    state = dict(autoencoder.state_dict())
    save_file({**state, "extra.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="unknown extra.weight"):
        load_wan_autoencoder(tmp_path / "a.safetensors", SIZE)
    with pytest.raises(CheckpointError, match="WanAutoencoder needs"):
        load_wan_autoencoder(_saved(state, tmp_path), _wider())
    state["conv1_of_nobody"] = state.pop("quant_conv.bias")
    with pytest.raises(CheckpointError, match="lacks quant_conv.bias"):
        load_wan_autoencoder(_saved(state, tmp_path), SIZE)
    broken = {**autoencoder.state_dict(), "quant_conv.bias": torch.full((32,), torch.nan)}
    with pytest.raises(CheckpointError, match="quant_conv.bias holds NaN"):
        load_wan_autoencoder(_saved(broken, tmp_path), SIZE)


def _saved(state, folder):
    save_file(state, folder / "b.safetensors")
    return folder / "b.safetensors"


def _wider():
    return WanAutoencoderConfig(height=16, width=24, base_width=8)
