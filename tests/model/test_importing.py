"""Weights under other names come back bit for bit; what does not fit is named."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from decmem_env.model import CheckpointError, WorldModel
from decmem_env.model.autoencoder import TinyAutoencoder
from decmem_env.model.config import debug
from decmem_env.model.conversion import convert
from decmem_env.model.formats import bare_names, family_of
from decmem_env.model.importing import load_transformer, parameter_shapes, plan_import
from decmem_env.model.matching import match_names, table
from decmem_env.model.weight_files import TensorInfo, locate, open_weights
from decmem_env.model.weight_writer import write_safetensors
from safetensors.torch import load_file, save_file

from .foreign import as_diffusers, as_wan, transformer, with_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ours():
    return transformer().state_dict()


def same(module, state):
    got = module.state_dict()
    return set(got) == set(state) and all(torch.equal(got[name], state[name]) for name in state)


def autoencoder():
    return {n: t.contiguous() for n, t in TinyAutoencoder(debug().autoencoder).state_dict().items()}


def shards(folder, tensors):
    names = sorted(tensors)
    half = len(names) // 2
    table = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, str(folder / file))
        table.update(dict.fromkeys(part, file))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return index


def test_original_and_diffusers_names_in_one_file_and_in_shards(ours, tmp_path):
    wan = with_text(as_wan(ours))
    for family, tensors in (("wan", wan), ("diffusers", as_diffusers(wan))):
        folder = tmp_path / family
        (folder / "transformer").mkdir(parents=True)
        save_file({n: t.contiguous() for n, t in tensors.items()}, str(folder / "diffusion_pytorch_model.safetensors"))
        index = shards(folder / "transformer", tensors)
        for path, container in ((folder, "safetensors"), (index, "safetensors, 2 shards")):
            module, plan = load_transformer(path, debug(), device=CPU)
            assert same(module, ours) and plan.family == family and plan.weights.container == container
            assert len(plan.match.left_out) == 4 + debug().depth * 12
        assert not any(p.requires_grad for p in module.parameters()) and not module.training


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w},
        lambda w: {f"module.{n}": t for n, t in w.items()},
        lambda w: {"generator": {f"model.{n}": t for n, t in w.items()}, "step": 3},
        lambda w: {"generator_ema": {f"model._fsdp_wrapped_module.{n}": t for n, t in w.items()}},
        lambda w: {f"generator._orig_mod.model.{n}": t for n, t in w.items()},
        lambda w: {
            "generator": {
                n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module._fsdp_wrapped_module."): t
                for n, t in w.items()
            },
            "critic": {n: t + 1 for n, t in w.items()},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
    ],
)
def test_prefixes_and_sections_of_training_states(wrap, ours, tmp_path):
    torch.save(wrap(as_wan(ours)), tmp_path / "model.pt")
    module, plan = load_transformer(tmp_path, debug(), device=CPU)
    assert same(module, ours) and plan.match.complete


def test_the_averaged_section_comes_first_and_any_can_be_asked_for(ours, tmp_path):
    wan = as_wan(ours)
    state = {"generator": {n: t * 2 for n, t in wan.items()}, "generator_ema": wan}
    torch.save(state, tmp_path / "model.pt")
    module, plan = load_transformer(tmp_path / "model.pt", debug(), device=CPU)
    assert same(module, ours) and plan.names.left == {"generator": len(wan)}
    other, _ = load_transformer(tmp_path / "model.pt", debug(), device=CPU, section="generator")
    assert torch.equal(other.head.bias, ours["head.bias"] * 2)
    with pytest.raises(CheckpointError, match="no section 'best' in this file: it has generator, generator_ema"):
        plan_import(tmp_path / "model.pt", debug(), "best")


def test_unknown_names_of_new_layers_are_guessed_by_the_end_of_the_name_and_the_shape(ours, tmp_path):
    strange = {}
    for name, tensor in with_text(as_wan(ours)).items():
        # The action encoder stands beside `model.`, the gate has another ending.
        if name.startswith("action."):
            strange["action_encoder.mlp." + name.removeprefix("action.")] = tensor
        else:
            strange["model." + name.replace("self_attn.gate.", "self_attn.ltm.gate_proj.")] = tensor
    torch.save({"generator": strange}, tmp_path / "decmem.pt")
    module, plan = load_transformer(tmp_path, debug(), device=CPU)
    assert same(module, ours)
    guessed = {pair.target for pair in plan.match.pairs if pair.how == "guess"}
    assert guessed == {name for name in ours if name.startswith("action.") or ".gate." in name}
    text = table(plan.match, plan.names.clean)
    assert "blocks.*.self_attn.ltm.gate_proj.weight" in text and "left out" in text
    assert [line for line in text.splitlines() if line.startswith("guess")][0].split()[-1] == "1"


def test_ambiguous_layers_are_not_guessed(ours, tmp_path):
    wan = as_wan(ours)
    gate = wan.pop("blocks.0.self_attn.gate.weight")
    wan["blocks.0.one.gate.weight"], wan["blocks.0.two.gate.weight"] = gate, gate + 1
    torch.save(wan, tmp_path / "x.pt")
    match = plan_import(tmp_path, debug()).match
    assert list(match.missing) == ["blocks.0.attention.gate.weight"]
    assert set(match.unexpected) == {"blocks.0.one.gate.weight", "blocks.0.two.gate.weight"}


def test_a_partial_match_is_refused_unless_told_to(ours, tmp_path):
    plain = {n: t for n, t in as_wan(ours).items() if "action" not in n and ".gate." not in n}
    plain["blocks.1.extra.thing.weight"] = torch.zeros(7, 5)
    plain["head.head.bias"] = torch.zeros(3)
    torch.save(plain, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="8 missing, 1 unexpected, 1 of another shape.*missing action.0.weight"):
        load_transformer(tmp_path, debug(), device=CPU)
    module, plan = load_transformer(tmp_path, debug(), device=CPU, allow_partial=True)
    assert torch.equal(module.state_dict()["blocks.1.attention.qkv.weight"], ours["blocks.1.attention.qkv.weight"])
    assert not module.blocks[0].attention.gate.weight.any(), "the gate starts as in training"
    assert module.action[0].weight.std() > 0
    again, _ = load_transformer(tmp_path, debug(), device=CPU, allow_partial=True)
    assert same(again, module.state_dict()), "initial values are seeded"
    text = table(plan.match, plan.names.clean)
    assert all(word in text for word in ("MISSING", "UNEXPECTED", "SHAPE", "blocks.*.extra.thing.weight"))


def test_a_fused_projection_needs_all_three_parts(ours, tmp_path):
    wan = as_wan(ours)
    del wan["blocks.0.self_attn.v.bias"]
    torch.save(wan, tmp_path / "x.pt")
    match = plan_import(tmp_path, debug()).match
    assert list(match.missing) == ["blocks.0.attention.qkv.bias"] and len(match.unexpected) == 2


def test_code_in_a_file_never_runs(tmp_path):
    class Boom:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Boom()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Boom()}, 2))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=name):
            open_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_missing_files_are_named(ours, tmp_path):
    index = shards(tmp_path, as_wan(ours))
    second = tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors"
    good = second.read_bytes()
    second.write_bytes(good[: len(good) // 2])
    with pytest.raises(CheckpointError, match="00002.safetensors is damaged"):
        open_weights(index)
    second.unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors, which is not there"):
        open_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="must lie beside their index"):
        open_weights(index)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match="cut.pt is damaged"):
        open_weights(tmp_path / "cut.pt")
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt"):
        (tmp_path / "two" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="several files: a.pt, b.pt; name one"):
        locate(tmp_path / "two")
    with pytest.raises(CheckpointError, match="decmem checkpoint download"):
        locate(tmp_path / "nothing")
    wan = as_wan(ours)
    wan["head.head.bias"] = torch.full_like(wan["head.head.bias"], float("nan"))
    torch.save(wan, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="head.bias holds NaN"):
        load_transformer(tmp_path / "nan.pt", debug(), device=CPU)


def test_convert_gives_a_checkpoint_that_generates_the_same(ours, tmp_path):
    torch.manual_seed(4)
    vae = autoencoder()
    save_file(vae, str(tmp_path / "autoencoder.safetensors"))
    torch.save({"generator": {f"model.{n}": t for n, t in as_wan(ours).items()}}, tmp_path / "decmem.pt")
    out = tmp_path / "out"
    written = []
    convert(plan_import(tmp_path / "decmem.pt", debug()), out, debug(), progress=written.append)
    got = load_file(str(out / "transformer.safetensors"))
    assert all(torch.equal(got[name], ours[name]) for name in ours) and set(got) == set(ours)
    assert sum(written) == sum(t.nbytes for t in ours.values())
    model = WorldModel.from_pretrained(out, memory_budget=8 << 20)
    assert same(model.transformer, ours) and same(model.autoencoder, vae)
    convert(plan_import(tmp_path / "decmem.pt", debug()), out, debug(), vae=tmp_path, dtype="bf16")
    halved = load_file(str(out / "transformer.safetensors"))
    assert all(torch.equal(halved[name], ours[name].bfloat16()) for name in ours)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    # A converted folder reads as one of ours, without any renaming.
    plan = plan_import(out, debug())
    assert plan.family == "native" and plan.match.complete and plan.match.pairs[0].how == "name"
    with pytest.raises(CheckpointError, match="is a decmem-env autoencoder, no transformer"):
        plan_import(tmp_path / "autoencoder.safetensors", debug())


def test_foreign_weights_name_the_command_that_converts_them(ours, tmp_path):
    torch.save(as_wan(ours), tmp_path / "decmem.pt")
    for path in (tmp_path, tmp_path / "decmem.pt"):
        with pytest.raises(CheckpointError, match=f"decmem checkpoint convert {path} --preset"):
            WorldModel.from_pretrained(path)
    with pytest.raises(CheckpointError, match="decmem checkpoint download decmem, then decmem checkpoint convert"):
        WorldModel.from_pretrained("KlingTeam/DecMem")


def test_an_incomplete_folder_of_ours_is_not_called_foreign(ours, tmp_path):
    save_file({n: t.contiguous() for n, t in ours.items()}, str(tmp_path / "transformer.safetensors"))
    with pytest.raises(CheckpointError, match="no config.json, autoencoder.safetensors in this folder"):
        WorldModel.from_pretrained(tmp_path)


def test_the_autoencoder_of_a_diffusers_folder_is_found(ours, tmp_path):
    for part, tensors in (("transformer", as_diffusers(with_text(as_wan(ours)))), ("vae", autoencoder())):
        (tmp_path / part).mkdir()
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, tmp_path / part / "diffusion_pytorch_model.safetensors"
        )
    convert(plan_import(tmp_path, debug()), tmp_path / "out", debug())
    assert same(WorldModel.from_pretrained(tmp_path / "out", memory_budget=8 << 20).transformer, ours)


def test_convert_leaves_nothing_behind_when_it_fails(ours, tmp_path):
    wan = as_wan(ours)
    torch.save({n: t * 1e6 for n, t in wan.items()}, tmp_path / "big.pt")
    plan = plan_import(tmp_path / "big.pt", debug())
    with pytest.raises(CheckpointError, match="give the autoencoder as --vae"):
        convert(plan, tmp_path / "out", debug())
    save_file(autoencoder(), str(tmp_path / "autoencoder.safetensors"))
    with pytest.raises(ValueError, match="NaN or infinity as F16: choose fp32"):
        convert(plan, tmp_path / "out", debug(), dtype="fp16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["autoencoder.safetensors", "big.pt"]


def test_the_writer_is_what_safetensors_reads(tmp_path):
    tensors = {
        "a": torch.randn(3, 5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
    }
    layout = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", layout, tensors.__getitem__, {"k": "v"})
    back = load_file(str(tmp_path / "x.safetensors"))
    assert set(back) == set(tensors)
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


def test_shapes_need_no_memory_and_families_have_names():
    shapes = parameter_shapes(debug())
    assert shapes["head.weight"] == (8, 64) and len(shapes) == len(transformer().state_dict())
    assert family_of(["decoder.upsamples.0.residual.2.weight"]) == "wan-vae"
    assert family_of(["nothing.like.it"]) == "unknown"
    assert bare_names(["model"]).clean == {"model": "model"}


def test_every_name_of_diffusers_own_model_is_known():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=8,
            out_channels=8,
            text_dim=64,
            freq_dim=256,
            ffn_dim=128,
            num_layers=2,
        ).state_dict()
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in theirs.items()}
    match = match_names(bare_names(theirs).clean, infos, parameter_shapes(debug()))
    assert not match.unexpected and not match.misfits and len(match.left_out) == 4 + 2 * 12
    assert all(name.startswith("action.") or ".gate." in name for name in match.missing)
    assert {pair.how for pair in match.pairs} == {"diffusers"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["big.safetensors", "big.pt"])
def test_loading_never_takes_twice_the_size(name, tmp_path):
    # A fresh process, because its peak must be of this load alone.
    script = """
import sys, torch
from decmem_env.model.config import tiny
from decmem_env.model.importing import load_transformer, parameter_shapes
from decmem_env.model.transformer import WorldTransformer
from safetensors.torch import save_file
config = tiny().with_overrides(width=640, heads=10, depth=12, ffn_width=2560)
path = sys.argv[1]
if sys.argv[2] == "write":
    state = WorldTransformer(config).state_dict()
    save_file(state, path) if path.endswith("safetensors") else torch.save({"generator": state}, path)
    sys.exit()
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
parameter_shapes(config)  # the first use of meta tensors imports much of torch
before = peak()
_, plan = load_transformer(path, config, device=torch.device("cpu"))
print((peak() - before) / plan.weights.bytes)
"""
    run = [sys.executable, "-P", "-c", script] if sys.version_info >= (3, 11) else [sys.executable, "-c", script]
    subprocess.run([*run, str(tmp_path / name), "write"], check=True)
    ratio = subprocess.run([*run, str(tmp_path / name), "load"], check=True, capture_output=True, text=True).stdout
    assert 0.9 < float(ratio) < 1.7, "the module, and one tensor beside it"
