"""`decmem pose` on a random checkpoint: every method runs, its figures become records; bad input is one line."""

import json

import torch
from decmem_env.model import WorldModel
from decmem_env.model.pose_predictor import PoseConfig, PosePredictor, save_pose

from decmem_env.cli import main


def test_scores_every_method_and_writes_records(tmp_path, capsys):
    torch.manual_seed(0)
    WorldModel.from_pretrained("debug").save_pretrained(tmp_path / "debug")
    save_pose(tmp_path / "debug", PosePredictor(PoseConfig(latent_channels=8, width=16, fine=8, hidden=16)))
    out = tmp_path / "pose.json"
    argv = ["pose", "--checkpoint", str(tmp_path / "debug"), "--device", "cpu", "--seeds", "7000000-7000001"]
    status = main([*argv, "--frames", "40", "--json", str(out)])
    printed = capsys.readouterr().out
    found = {item["name"]: item for item in json.loads(out.read_text())}
    assert status == (0 if all(item["met"] is not False for item in found.values()) else 1)
    contact = found["steps held back by walls"]
    assert contact["value"] >= 20 and contact["met"] and contact["bar"] == 20
    for method in ("true_open", "true_closed", "dream_open", "dream_closed"):
        error, gain = found[f"{method}: mean error"], found[f"{method}: kinematic error over it"]
        assert error["value"] > 0 and error["bar"] == 1 and error["met"] == (error["value"] <= 1)
        assert len(error["details"]["by_walk"]) == 2 and error["details"]["steps"] == 40
        reckoned = found["kinematic: mean error"]["value"]
        assert abs(gain["value"] - reckoned / error["value"]) < 0.01 * gain["value"] + 0.01
        assert f"{method}: mean error" in printed
    assert out.with_suffix(".md").is_file()


def test_bad_input_is_named(capsys):
    assert main(["pose", "--checkpoint", "debug", "--device", "cpu"]) == 2
    assert "decmem train pose" in capsys.readouterr().err
    assert main(["pose", "--checkpoint", "debug", "--methods", "true_open,guess"]) == 2
    assert "guess" in capsys.readouterr().err
