"""`decmem infer` and `decmem eval` on clips made here, with the bundled and with random weights."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from decmem_env import metrics, results
from decmem_env.cli import main
from decmem_env.conventions.clips import Clip, read_clip, write_clip
from decmem_env.datasets import index_clips, make_clips
from decmem_env.given_clips import Continued, continue_clip, read_given, to_model_size
from decmem_env.protocol import WINDOWS, Setting, parse_windows, window_name


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    make_clips(root, clips=3, frames=26, seeds=range(8_000_000, 8_000_010))
    index_clips(root)
    return root / "test.csv"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in ("EXP_NAME", "CHECKPOINT_PATH", "T_LAT", "NUM_CONDITION_FRAMES", "GUIDANCE_SCALE", "N", "NUM_GPUS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NUM_INFERENCE_STEPS", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def infer(clips, out, *more):
    return main(["infer", "--csv", str(clips), "--out", str(out), "--start-frame", "2", "--device", "cpu", *more])


def test_infer_with_the_bundled_weights_writes_clip_strip_and_facts(clips, tmp_path, capsys):
    argv = ["--t-lat", "24", "--num-condition-frames", "20", "--n", "1"]
    assert infer(clips, tmp_path, *argv) == 0
    (video,) = (tmp_path / "infer").glob("*.mp4")
    name = clips.read_text().splitlines()[1].split("/")[1].split(".")[0]
    assert video.stem == f"00000_{name}"
    truth, made = read_clip(clips.parent / "test" / f"{name}.mp4"), read_clip(video)
    assert len(made) == 24 and np.array_equal(made.poses, truth.poses[2:26])
    assert np.array_equal(made.actions[1:], truth.actions[3:26]) and not made.actions[0].any()
    assert metrics.psnr(made.frames[:20], truth.frames[2:22]).min() > 35, "the given frames come first"
    facts = json.loads(video.with_suffix(".json").read_text())
    score = float(metrics.psnr(made.frames[20:], truth.frames[22:26]).mean())
    assert facts["psnr_db"] == pytest.approx(score, abs=0.5) and score > 12, "generated frames resemble the truth"
    assert facts["settings"]["checkpoint"] == "tiny" and facts["settings"]["condition_frames"] == 20
    assert facts["frames_per_second"] > 0 and video.with_suffix(".png").stat().st_size > 1000


def test_infer_takes_environment_variables_and_continues_after_an_interruption(clips, tmp_path, capsys, monkeypatch):
    for name, value in {"T_LAT": "9", "NUM_CONDITION_FRAMES": "6", "EXP_NAME": "mine"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_PATH", "debug")
    monkeypatch.setenv("NUM_INFERENCE_STEPS", "2")
    monkeypatch.setenv("GUIDANCE_SCALE", "0.5")
    assert infer(clips, tmp_path, "--n", "2") == 0
    folder = tmp_path / "mine"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    facts = [json.loads(path.read_text())["settings"] for path in sorted(folder.glob("*.json"))]
    assert [f["guidance"] for f in facts] == [1.0, 1.0], "a scale of at most 1 is off"
    assert [f["steps"] for f in facts] == [2, 2] and len(before) == 8
    sorted(folder.glob("*.png"))[1].unlink()  # as if the second sample had been interrupted
    capsys.readouterr()
    assert infer(clips, tmp_path, "--n", "3") == 0
    assert "2 samples written, 1 kept" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    kept = {path.name for path in before if after[path] == before[path]}
    assert len(after) == 12 and {name[:5] for name in kept} == {"00000"}
    assert infer(clips, tmp_path, "--n", "3", "--num-inference-steps", "1") == 0
    assert "3 samples written, 0 kept" in capsys.readouterr().out, "other settings are other samples"


def test_ranks_share_the_samples(clips, tmp_path, capsys, monkeypatch):
    argv = ["--checkpoint-path", "debug", "--t-lat", "6", "--num-condition-frames", "4", "--num-gpus", "2"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert infer(clips, tmp_path, *argv) == 0
        done.append({path.name[:5] for path in (tmp_path / "infer").glob("*.json")})
    assert done == [{"00001"}, {"00000", "00001", "00002"}]


def test_several_gpus_start_torchrun_on_the_same_command(clips, tmp_path, monkeypatch):
    import subprocess

    started = []

    def note(command, check):
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", note)
    assert infer(clips, tmp_path, "--num-gpus", "2", "--checkpoint-path", "debug") == 0
    (command,) = started
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"] and "--nproc-per-node=2" in command
    assert command[command.index("decmem_env.cli") + 1 :][:3] == ["infer", "--csv", str(clips)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--t-lat", "4", "--num-condition-frames", "4"], "T_LAT 4 must be above NUM_CONDITION_FRAMES 4"),
        (["--n", "9"], "names 3 clips, 9 are asked for"),
        (["--t-lat", "30", "--num-condition-frames", "4"], "has 26 frames: frames 2 to 31 are needed"),
        (["--checkpoint-path", "absent"], "'absent' does not exist"),
        (["--guidance-scale", "nan", "--t-lat", "6", "--num-condition-frames", "4"], "guidance nan"),
    ],
)
def test_bad_settings_are_named(clips, tmp_path, capsys, argv, message):
    argv = argv if "--checkpoint-path" in argv else [*argv, "--checkpoint-path", "debug"]
    assert infer(clips, tmp_path, *argv) == 2
    assert message in capsys.readouterr().err


def evaluate(clips, out, *more):
    argv = ["eval", "--csv", str(clips), "--out", str(out), "--start-frame", "0", "--device", "cpu"]
    return main([*argv, "--condition-frames", "12", "--windows", "13-15,19-21", *more])


def test_eval_scores_the_windows_and_says_how(clips, tmp_path, capsys):
    assert evaluate(clips, tmp_path, "--n", "2") == 0
    printed = capsys.readouterr()
    found = {item["name"]: item for item in results.read_results(tmp_path / "eval.json")}
    protocol = found["eval.protocol"]["details"]
    assert protocol["deviations_from_the_paper"][:2] == [
        "given frames: 12, the paper has 221",
        "windows: 13-15, 19-21, the paper has 222-229, 334-341, 798-805",
    ]
    assert "data range 1" in protocol["definitions"]["psnr"] and "AlexNet" in protocol["definitions"]["lpips"]
    first = found["eval.frames_13_15.psnr.raw"]
    assert first["details"]["frames_of_clip"] == "13-15" and first["details"]["frames"] == 6
    # The same numbers, computed by hand from the kept frames and the clips themselves.
    by_hand = []
    for name in sorted(path.stem for path in tmp_path.glob("0*.npz")):
        truth = read_clip(clips.parent / "test" / f"{name[6:]}.mp4").frames
        with np.load(tmp_path / f"{name}.npz") as kept:
            assert np.array_equal(kept["raw_0"], truth[12:15]) and np.array_equal(kept["raw_1"], truth[18:21])
            by_hand.append(metrics.psnr(kept["generated_0"], truth[12:15]).mean())
            assert metrics.psnr(kept["decoded_0"], truth[12:15]).min() > 20
    assert first["value"] == pytest.approx(float(np.mean(by_hand)), abs=1e-3)
    assert first["details"]["low"] <= first["value"] <= first["details"]["high"]
    assert found["eval.frames_per_second"]["value"] > 0
    page = (tmp_path / "eval.md").read_text()
    assert "Differs from the paper's protocol:" in page and "data range 1" in page and "tiny" in page
    if "unavailable" in found["eval.frames_13_15.fid.raw"]["details"]:
        assert found["eval.frames_13_15.fid.raw"]["value"] is None
        assert "LPIPS needs" in printed.err and "FID not measured: FID needs" in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("0*")}
    assert evaluate(clips, tmp_path, "--n", "2") == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("0*")} == before, "finished clips are kept"


def test_eval_of_a_rank_leaves_scoring_to_the_plain_command(clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert evaluate(clips, tmp_path, "--checkpoint-path", "debug") == 0
    assert "run the command without torchrun to score" in capsys.readouterr().out
    assert not (tmp_path / "eval.json").exists() and len(list(tmp_path.glob("*.npz"))) == 2
    monkeypatch.delenv("WORLD_SIZE")
    assert evaluate(clips, tmp_path, "--checkpoint-path", "debug") == 0
    assert results.read_results(tmp_path / "eval.json")[0]["details"]["clips"] == 3


def test_the_protocol_is_the_papers():
    assert WINDOWS == ((222, 229), (334, 341), (798, 805)) and parse_windows("222-229,334-341,798-805", 221) == WINDOWS
    assert [window_name(w, 221) for w in WINDOWS] == ["within", "mid", "long"]
    assert window_name((222, 229), 200) == "frames_222_229", "the names belong to 221 given frames"
    assert Setting(221, WINDOWS, 300, 20, 7.5, "memory").deviations() == []
    assert Setting(221, WINDOWS, 300, 50, 7.5, "memory").deviations() == ["denoising steps: 50, the paper has 20"]
    for text, message in (("8", "is not FIRST-LAST"), ("30-20", "is not FIRST-LAST"), ("5-9", "after the 12 given")):
        with pytest.raises(ValueError, match=message):
            parse_windows(text, 12)


def test_missing_weights_name_file_and_command(monkeypatch, tmp_path):
    from decmem_env import feature_metrics

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(feature_metrics.MetricUnavailable, match="net-1.pth: where there is a network, python -c"):
        feature_metrics._require_weights("FID", "https://example.org/a/net-1.pth", "fetch()")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "net-1.pth").write_bytes(b"")
    feature_metrics._require_weights("FID", "https://example.org/a/net-1.pth", "fetch()")


def test_sizes_close_in_proportion_are_resized_others_cut():
    frames = np.zeros((2, 36, 64, 3), np.uint8)
    frames[:, :2] = 255  # the top rows survive a resize and go when rows are cut
    assert to_model_size(frames, 35, 64)[0, 0].mean() > 200
    wide = np.zeros((1, 36, 128, 3), np.uint8)
    wide[:, :, :10] = 255
    assert to_model_size(wide, 36, 64).max() == 0
    assert to_model_size(frames, 36, 64) is frames


def test_speed_counts_whole_chunks():
    made = Continued(np.zeros((40, 1, 1, 3), np.uint8), [(16, 2.0), (16, 3.0), (8, 4.0)])
    assert made.first(20) == (32, 3.0) and made.first(1000) == (40, 4.0) and made.frames_per_second == 10.0


def test_a_partial_chunk_is_generated_whole_along_the_clip_and_cut(tmp_path):
    from decmem_env.given_clips import Generation

    class Model:
        name, sha256, frames_per_step = "m", "0", 4
        config = type(
            "C",
            (),
            {
                "guidance": 1.0,
                "steps": 1,
                "default_new_view_steps": 1,
                "height": 2,
                "frame_width": 2,
                "voxel_hands": False,
            },
        )
        asked: list = []

        def start(self, **_):
            return self

        def observe(self, *_):
            pass

        def close(self):
            pass

        def step(self, sessions, actions, poses):
            self.asked.append(poses[0, :, 0].tolist())
            return np.zeros((1, 4, 2, 2, 3), np.uint8)

    poses = np.zeros((12, 5))
    poses[:, 0] = np.arange(12)
    write_clip(tmp_path / "c.mp4", Clip(np.zeros((12, 2, 2, 3), np.uint8), np.zeros((12, 25), np.float32), poses))
    model = Model()
    how = Generation.of(model, start_frame=0)
    clip = read_given(tmp_path / "c.mp4", 0, 9, model)
    assert len(continue_clip(model, clip, 4, 5, how, 0).frames) == 5
    assert model.asked == [[4, 5, 6, 7], [8, 9, 10, 11]], "the clip's own poses fill the last chunk"
    model.asked.clear()
    clip = read_given(tmp_path / "c.mp4", 2, 10, model)
    assert len(continue_clip(model, clip, 4, 6, how, 0).frames) == 6
    assert model.asked[-1] == [10, 11, 11, 11], "at its end it stands still"
