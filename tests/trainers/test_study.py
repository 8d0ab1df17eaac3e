"""The memory study end to end at toy size: variants are trained, compared along a short rollout, and drawn."""

import json

import pytest
from decmem_env.trainers import study as training

from decmem_env import study
from decmem_env.cli import main


@pytest.fixture(scope="module")
def studied(tmp_path_factory, runs):
    out = tmp_path_factory.mktemp("study")
    options = [
        "--out",
        str(out),
        "--init",
        str(runs["dense"]),
        "--steps",
        "1",
        "--stage",
        "debug_decmem",
        "--device",
        "cpu",
    ]
    assert training.main([*options, "--variants", "dense", "union", "no_alm", "--at-once", "3"]) == 0
    return out


def test_variants_are_trained_for_the_same_steps_on_the_same_data(studied):
    logs = {}
    for name in ("dense", "union", "no_alm"):
        assert (studied / name / "export" / "transformer.safetensors").is_file()
        logs[name] = [json.loads(line) for line in (studied / name / "log.jsonl").read_text().splitlines()][0]
    assert {log["step"] for log in logs.values()} == {1}
    assert len({json.dumps(log["data"]) for log in logs.values()}) == 1
    assert len({log["loss"] for log in logs.values()}) > 1, "what attention sees differs"
    config = json.loads((studied / "no_alm" / "export" / "config.json").read_text())
    assert config["window"] == 0 and config["fusion"] == "union"


def test_comparison_prints_writes_and_draws(studied, tmp_path, capsys):
    table, picture = tmp_path / "s.json", tmp_path / "s.png"
    arguments = ["study", "--runs", str(studied), "--worlds", "7000000-7000000", "--frames", "60", "--device", "cpu"]
    assert main([*arguments, "--json", str(table), "--png", str(picture)]) == 0
    found = {item["name"]: item for item in json.loads(table.read_text())}
    for row in ("dense", "decay", "union", "no_alm"):
        curve = found[f"study.{row}.psnr_db"]["details"]["curve"]
        assert [point["x"] for point in curve] == [50.0] and 0 < curve[0]["psnr"] < 60
        watched = found[f"study.{row}.block_critical"]["details"]
        assert watched["frame"] == [0, 50] and all(0 <= v <= 1 for v in watched["share"])
        assert found[f"study.{row}.step_ms"]["value"] > 0
    assert "study.window.psnr_db" not in found
    printed = capsys.readouterr().out
    assert "psnr by 100 generated frames" in printed and "attention, block, critical" in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_missing_and_unfinished_runs_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds none of dense, window"):
        study.contenders(tmp_path, lambda folder: None)
    (tmp_path / "gated").mkdir()
    with pytest.raises(ValueError, match="gated has no export"):
        study.contenders(tmp_path, lambda folder: None)


def test_a_failed_variant_ends_the_study(tmp_path, capfd):
    options = ["--out", str(tmp_path), "--init", str(tmp_path / "nowhere"), "--steps", "1", "--device", "cpu"]
    assert training.main([*options, "--variants", "union"]) != 0
    assert "variant union ended with status" in capfd.readouterr().err
    assert training.main([*options[:4], "--steps", "0"]) == 2
