import json
import math

import numpy as np
import pytest
import torch
from decmem_env.model import CheckpointError, ModelConfig, WorldModel
from decmem_env.model.config import debug, preset, tiny
from decmem_env.model.importing import parameter_shapes
from safetensors.torch import load_file, save_file

from .conftest import build, make_walk
from .test_sessions import begin, play


@pytest.fixture
def folder(tmp_path):
    build().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip(folder, tmp_path):
    walk = make_walk(20)
    loaded = WorldModel.from_pretrained(folder, memory_budget=32 << 20)
    assert sorted(p.name for p in folder.iterdir()) == [
        "autoencoder.safetensors",
        "config.json",
        "transformer.safetensors",
    ]
    assert load_file(str(folder / "transformer.safetensors"))["head.weight"].dtype == torch.float16
    assert next(loaded.transformer.parameters()).dtype == torch.float32
    loaded.save_pretrained(tmp_path / "again")
    again = WorldModel.from_pretrained(tmp_path / "again", memory_budget=32 << 20)
    assert again.sha256 == loaded.sha256
    runs = [play(m, begin(m, walk, 1), walk, 14, 16) for m in (loaded, again)]
    assert np.array_equal(*runs)
    exact = build()
    assert abs(play(exact, begin(exact, walk, 1), walk, 14, 15).astype(int) - runs[0][:1]).mean() < 2
    loaded.save_pretrained(folder)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_loading_twice_shares_the_weights_but_not_the_memory():
    one, two = (WorldModel.from_pretrained("debug", memory_budget=8 << 20) for _ in range(2))
    assert one.transformer is two.transformer and one.pool is not two.pool
    assert one.sha256 == two.sha256 and len(one.sha256) == 64


def test_files_that_changed_are_read_again(folder):
    before = WorldModel.from_pretrained(folder, memory_budget=8 << 20)
    changed = build(top_k=5)
    changed.save_pretrained(folder)
    after = WorldModel.from_pretrained(folder, memory_budget=8 << 20)
    assert after.config.top_k == 5 and after.sha256 != before.sha256


def test_a_folder_with_a_bundled_name_is_not_taken_for_it_silently(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="tiny is the bundled one; ./tiny means the folder here"):
        bundled = WorldModel.from_pretrained("tiny", memory_budget=64 << 20)
    assert bundled.config.width == 320
    assert WorldModel.from_pretrained("./tiny", memory_budget=8 << 20).config.width < 320


def test_errors_name_what_is_wrong(folder, tmp_path):
    with pytest.raises(CheckpointError, match="'nonsense' does not exist: expected one of .*debug"):
        WorldModel.from_pretrained("nonsense")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no config.json, transformer.safetensors, autoencoder.safetensors"):
        WorldModel.from_pretrained(tmp_path / "empty")
    path = folder / "transformer.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    with pytest.raises(CheckpointError, match="transformer.safetensors is damaged"):
        WorldModel.from_pretrained(folder)
    path.write_bytes(good)
    for change, message in (
        (lambda t: t.pop("patch.bias"), "lacks patch.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds unknown extra"),
        (lambda t: t.update({"patch.bias": torch.zeros(3)}), r"patch.bias has shape \(3,\).*\(64,\)"),
        (lambda t: t["patch.bias"].fill_(float("nan")), "patch.bias holds NaN"),
    ):
        tensors = load_file(str(path))
        change(tensors)
        save_file(tensors, str(path))
        with pytest.raises(CheckpointError, match=message) as caught:
            WorldModel.from_pretrained(folder)
        assert "\n" not in str(caught.value)
        path.write_bytes(good)
    (folder / "config.json").write_text('{"widht": 3}')
    with pytest.raises(CheckpointError, match="config.json: model config: unknown field widht"):
        WorldModel.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json"):
        WorldModel.from_pretrained(folder)


def test_saving_refuses_to_replace_other_folders(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no checkpoint"):
        build().save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match="use device='cpu'"):
        WorldModel.from_pretrained("debug", device="cuda")


@pytest.mark.parametrize(
    "config", [tiny(), debug(), preset("wan-1.3b"), tiny().with_overrides(fusion="union", top_k=96)]
)
def test_config_round_trip(config):
    assert ModelConfig.from_json(config.to_json()) == config
    values = json.loads(config.to_json())
    with pytest.raises(ValueError, match="unknown field depht"):
        ModelConfig.from_dict({**values, "depht": 3})
    with pytest.raises(ValueError, match="unknown autoencoder settings"):
        ModelConfig.from_dict({**values, "autoencoder": {"lattent": 3}})


def test_tiny_is_what_the_issue_asks_for():
    config = tiny()
    assert (config.width, config.depth, config.heads, config.head_dim, config.ffn_width) == (320, 8, 5, 64, 1280)
    assert (config.tokens, config.block_tokens, config.window, config.top_k) == (60, 10, 8, 48)
    assert config.autoencoder.latent_shape == (32, 6, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "sum"}, "'sum': expected one of gated, union"),
        ({"sampler": "ddim"}, "'ddim': expected one of euler, renoise"),
        ({"block_tile": (4, 5)}, "does not divide"),
        ({"blocks_per_frame": 5}, "are not 60 tokens"),
        ({"camera_channels": 22}, "multiples of 4"),
        ({"gate_init": 1.0}, "between 0 and 1"),
        ({"window": -1}, "window is -1"),
        ({"nothing": 1}, "unknown field nothing"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny().with_overrides(**changes)


def test_wan_is_what_the_paper_describes():
    config = preset("wan-1.3b")
    assert (config.width, config.depth, config.heads, config.head_dim, config.ffn_width) == (1536, 30, 12, 128, 8960)
    assert (config.grid, config.tokens, config.block_tokens, config.padding) == ((22, 40), 882, 147, 2)
    assert (config.chunk, config.window, config.top_k, config.frames_per_latent) == (4, 8, 80, 4)
    count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    gates = 30 * (1536 * 1536 + 1536)
    actions = 100 * 1536 + 1536 + 1536 * 1536 + 1536
    assert count - gates - actions == 1_126_858_816  # Wan2.1-T2V-1.3B without text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_channels": 24}, "multiple of 16"),
        ({"spatial_channels": 60}, "which gives"),
        ({"blocks_per_frame": 100}, "blocks empty"),
        ({"patch": 3}, "does not divide latents"),
        ({"shift": 0.0}, "shift is 0"),
        ({"layout": "none"}, "expected one of split, wan"),
    ],
)
def test_impossible_sizes_of_wan_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("wan-1.3b").with_overrides(**changes)


def test_unknown_preset():
    with pytest.raises(ValueError, match="expected one of tiny, debug"):
        preset("huge")
