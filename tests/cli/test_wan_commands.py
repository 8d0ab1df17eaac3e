"""The commands with a converted checkpoint of the full-size kind: the Wan VAE's frame counts from convert to scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel
from safetensors.torch import save_file

from decmem_env import metrics, results
from decmem_env.cli import main
from decmem_env.conventions.actions import Action
from decmem_env.conventions.clips import Clip, read_clip, write_clip

HEIGHT, WIDTH = 64, 112


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two weight files of a project that names its parts as ours, through `decmem checkpoint convert`."""
    root = tmp_path_factory.mktemp("wan")
    with pytest.warns(UserWarning, match="random weights"):
        model = WorldModel.from_pretrained("wan-debug")
    for name, module in (("model", model.transformer), ("vae", model.autoencoder)):
        state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        save_file(state, root / f"{name}.safetensors")
    argv = ["checkpoint", "convert", str(root / "model.safetensors"), "--vae", str(root / "vae.safetensors")]
    assert main([*argv, "--preset", "wan-debug", "--out", str(root / "out")]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One clip of 31 frames: a gradient that moves."""
    root = tmp_path_factory.mktemp("clips")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.stack([np.stack([rows * 3, columns * 2, rows + columns + t], -1) for t in range(31)]).astype(np.uint8)
    actions = np.zeros((31, 25), np.float32)
    actions[1:, Action.FORWARD] = 1.0
    poses = np.zeros((31, 5))
    poses[:, 2] = 0.2 * np.arange(31)
    write_clip(root / "walk.mp4", Clip(frames, actions, poses))
    (root / "test.csv").write_text("video_path,action_path\nwalk.mp4,walk.npz\n")
    return root / "test.csv"


def test_infer_counts_latents(checkpoint, clips, tmp_path, capsys):
    argv = ["infer", "--csv", str(clips), "--out", str(tmp_path), "--checkpoint-path", str(checkpoint)]
    argv += ["--device", "cpu", "--start-frame", "1", "--num-inference-steps", "1", "--guidance-scale", "1"]
    assert main([*argv, "--num-condition-frames", "4", "--t-lat", "6"]) == 0
    assert "13 given + 8 frames" in capsys.readouterr().err, "4 latents are 13 frames, 6 are 21"
    (video,) = (tmp_path / "infer").glob("*.mp4")
    assert sorted(path.suffix for path in video.parent.iterdir()) == [".json", ".mp4", ".npz", ".png"]
    truth, made = read_clip(clips.parent / "walk.mp4"), read_clip(video)
    assert made.frames.shape == (21, HEIGHT, WIDTH, 3) and np.array_equal(made.poses, truth.poses[1:22])
    assert metrics.psnr(made.frames[:13], truth.frames[1:14]).min() > 28, "the given frames come first"
    facts = json.loads(video.with_suffix(".json").read_text())
    assert facts["settings"]["condition_frames"] == 13 and facts["settings"]["frames"] == 21
    score = float(metrics.psnr(made.frames[13:], truth.frames[14:22]).mean())
    assert facts["psnr_db"] == pytest.approx(score, abs=0.5) and facts["frames_per_second"] > 0
    # What the command wrote is what a session generates by hand from the same frames.
    session = WorldModel.from_pretrained(checkpoint).start(seed=0, steps=1, guidance=1.0)
    actions = truth.actions[1:30].copy()
    actions[0] = 0.0
    session.observe(truth.frames[1:14], actions[:13], truth.poses[1:14])
    by_hand = session.model.step([session], actions[None, 13:], truth.poses[None, 14:30])[0, :8]
    assert metrics.psnr(made.frames[13:], by_hand).min() > 22, "but for the video file's loss"


def test_given_latents_are_whole_chunks(checkpoint, clips, tmp_path, capsys):
    argv = ["--csv", str(clips), "--out", str(tmp_path), "--checkpoint-path", str(checkpoint), "--device", "cpu"]
    assert main(["infer", *argv, "--num-condition-frames", "5", "--t-lat", "6"]) == 2
    assert "17 given frames" in (said := capsys.readouterr().err)
    assert "expected 13 (4 latents) or 29 (8 latents)" in said
    assert main(["eval", *argv, "--condition-frames", "12", "--windows", "14-15"]) == 2
    assert "12 given frames" in (said := capsys.readouterr().err) and "expected 13 (4 latents)" in said


def test_eval_scores_frames_inside_a_chunk(checkpoint, clips, tmp_path):
    argv = ["eval", "--csv", str(clips), "--out", str(tmp_path), "--checkpoint-path", str(checkpoint)]
    argv += ["--device", "cpu", "--start-frame", "0", "--num-inference-steps", "1", "--guidance-scale", "1"]
    assert main([*argv, "--condition-frames", "13", "--windows", "14-15,18-20"]) == 0
    truth = read_clip(clips.parent / "walk.mp4").frames
    with np.load(tmp_path / "00000_walk.npz") as kept:
        arrays = dict(kept)
    assert np.array_equal(arrays["raw_0"], truth[13:15]) and np.array_equal(arrays["raw_1"], truth[17:20])
    assert arrays["generated_1"].shape == (3, HEIGHT, WIDTH, 3)
    autoencoder = WorldModel.from_pretrained(checkpoint).autoencoder
    whole = autoencoder.decode(autoencoder.encode(torch.from_numpy(truth[:21])))
    # The twenty-first frame fills the last latent there, a copy of the twentieth in the command.
    assert metrics.psnr(arrays["decoded_0"], whole[13:15].numpy()).min() > 40
    found = {item["name"]: item for item in results.read_results(tmp_path / "eval.json")}
    by_hand = float(metrics.psnr(arrays["generated_1"], truth[17:20]).mean())
    assert found["eval.frames_18_20.psnr.raw"]["value"] == pytest.approx(by_hand, abs=1e-3)


def test_rollout_begins_in_a_world_and_cuts_the_last_chunk(checkpoint, tmp_path):
    argv = ["rollout", "--checkpoint", str(checkpoint), "--device", "cpu", "--steps", "1"]
    assert main([*argv, "--actions", "W*5", "--out", str(tmp_path / "walk.mp4")]) == 0
    made = read_clip(tmp_path / "walk.mp4")
    assert made.frames.shape == (25 + 5, HEIGHT, WIDTH, 3), "25 observed frames, lengthened to 29 only in memory"
    assert (made.actions[25:, Action.FORWARD] == 1).all()
    assert np.linalg.norm(made.poses[-1, :3] - made.poses[24, :3]) > 0.5
