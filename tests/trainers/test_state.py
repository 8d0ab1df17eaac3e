import json

import numpy as np
import pytest
import torch
from decmem_env.trainers import compact
from decmem_env.trainers.curves import RunLog, read_log
from decmem_env.trainers.files import StateError, read_tensors, replacing_folder, settled_folder, write_tensors


def test_signed_code_is_close_and_keeps_shape():
    torch.manual_seed(0)
    tensor = torch.randn(7, 100) * torch.logspace(-6, 2, 7)[:, None]
    codes, scale = compact.encode_signed(tensor)
    assert codes.shape == tensor.shape and codes.dtype == torch.int8
    error = (compact.decode_signed(codes, scale) - tensor).abs()
    assert (error <= 0.51 * scale.max()).all()
    flat = torch.randn(256) * 3
    codes, scale = compact.encode_signed(flat)
    assert (compact.decode_signed(codes, scale) - flat).abs().max() <= flat.abs().max() / 127 * 0.51


def test_second_moment_code_keeps_relative_precision_over_many_octaves():
    tensor = torch.logspace(-8, 0, 256)
    tensor[3] = 0.0
    codes, top = compact.encode_second(tensor)
    decoded = compact.decode_second(codes, top)
    assert decoded[3] == 0
    kept = tensor > 0
    assert ((decoded[kept] / tensor[kept]).log2().abs() < 0.07).all()


def test_ten_million_parameters_fit():
    weights = {f"w{i}": torch.zeros(1_060_000) for i in range(10)}
    moments = {f"w{i}.momentum": t for i, t in enumerate(weights.values())}
    tensors = compact.encode_state(weights, weights, moments)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 44 * 2**20


def test_shards_stay_below_the_limit(tmp_path):
    tensors = {f"t{i}": torch.arange(1000, dtype=torch.float32) + i for i in range(10)}
    compact.write_shards(tmp_path, tensors, limit=10_000)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == 5 and all(f.stat().st_size <= 10_000 for f in files)
    back = compact.read_shards(tmp_path)
    assert all(torch.equal(back[n], t) for n, t in tensors.items())
    with pytest.raises(ValueError, match="more than a shard"):
        compact.write_shards(tmp_path, {"big": torch.zeros(5000)}, limit=10_000)


def test_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "state"
    with replacing_folder(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing_folder(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    target.rename(tmp_path / "state.old")  # a crash between the two renames
    assert settled_folder(target).name == "state.old"


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(StateError, match="is missing"):
        read_tensors(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(100)})
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:150])
    with pytest.raises(StateError, match="is damaged"):
        read_tensors(tmp_path / "x.safetensors")


def test_log_drops_what_a_crash_lost(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    RunLog(tmp_path / "log.jsonl", step=2)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_numpy_generator_state_survives_json():
    rng = np.random.default_rng(3)
    rng.random(5)
    state = json.loads(json.dumps(rng.bit_generator.state))
    other = np.random.default_rng(0)
    other.bit_generator.state = state
    assert other.random() == rng.random()
