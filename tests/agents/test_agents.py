"""Scripted players, the SB3 adapter, a short training run, evaluation."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from decmem_env.agents.scripted import GoalPlayer, NoopPlayer, RandomPlayer, ScriptPlayer, oracle
from gymnasium import spaces

sb3 = pytest.importorskip("stable_baselines3")

from decmem_env.agents import evaluate, ppo  # noqa: E402
from decmem_env.agents.policy import load_policy  # noqa: E402
from decmem_env.agents.sb3 import SB3VecEnv  # noqa: E402

from decmem_env.vector import DecMemVectorEnv  # noqa: E402
from decmem_env.voxel_env import VoxelVectorEnv  # noqa: E402

SMALL = {"task": "reach_landmark", "obs_size": (64, 64), "context_frames": 3}
WORLDS = list(range(9_000_000, 9_000_004))


def luck(count):
    return [np.random.default_rng(i) for i in range(count)]


def test_wilson_matches_known_values():
    assert evaluate.wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert evaluate.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert evaluate.wilson(10, 10)[1] == pytest.approx(1.0)


def test_scripted_players():
    seen = [{"goal": np.array([0.5, np.sin(b), np.cos(b)], np.float32)} for b in (0.0, 0.6, -0.6)]
    assert GoalPlayer().act(seen, [0] * 3, luck(3)).tolist() == [1, 6, 5]
    assert NoopPlayer().act(seen, [0] * 3, luck(3)).tolist() == [0, 0, 0]
    draws = np.array([RandomPlayer().act(seen, [0] * 3, luck(3)) for _ in range(2)])
    assert (draws[0] == draws[1]).all()  # luck belongs to the episode
    script = ScriptPlayer("W*2 R")
    assert [int(script.act(seen[:1], [t], luck(1))[0]) for t in range(4)] == [1, 1, 6, 1]
    with pytest.raises(ValueError, match="no single discrete action"):
        ScriptPlayer("W+R")
    with pytest.raises(ValueError, match="no scripted player"):
        oracle("sleep")


def test_the_adapter_needs_same_step():
    with pytest.raises(ValueError, match="SAME_STEP"):
        SB3VecEnv(VoxelVectorEnv(1, 4, **SMALL))


def test_the_adapter_gives_terminal_observations():
    env = SB3VecEnv(VoxelVectorEnv(2, 3, autoreset_mode="SAME_STEP", samples=1, **SMALL))
    env.seed(5)
    first = env.reset()
    for _ in range(2):
        observations, rewards, done, infos = env.step(np.array([1, 5]))
        assert not done.any() and infos == [{}, {}]
    observations, rewards, done, infos = env.step(np.array([1, 5]))
    assert done.all() and rewards.dtype == np.float32
    assert infos[0]["TimeLimit.truncated"] and not infos[0]["is_success"]
    assert not np.array_equal(infos[0]["terminal_observation"]["frame"], observations["frame"][0])
    env.seed(5)
    assert np.array_equal(env.reset()["frame"], first["frame"])
    env.close()


def test_the_oracle_wins_and_luck_does_not_depend_on_the_batch():
    rows = evaluate.make_rows("voxel", "reach_landmark", context_frames=3)
    wins = evaluate.play(rows, oracle("reach_landmark"), WORLDS)
    assert sum(episode.success for episode in wins) >= 3
    assert all(episode.total_reward > 1 for episode in wins if episode.success)
    alone = evaluate.play(rows, RandomPlayer(), WORLDS, horizon=4, together=1)
    many = evaluate.play(rows, RandomPlayer(), WORLDS, horizon=4, together=3)
    assert alone == many
    assert [episode.world_seed for episode in many] == WORLDS


@pytest.mark.parametrize("world", ["dream", "voxel"])
def test_train_and_evaluate(world, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--world", world, "--checkpoint", "debug", "--steps", "32", "--num-envs", "2", "--context-frames", "3"]
    assert ppo.main([*arguments, "--horizon", "8", "--seeds", "3", "--out", str(out)]) == 0
    assert sorted(path.name for path in (out / "seed3").iterdir()) == ["log.jsonl", "policy.zip"]
    lines = [json.loads(line) for line in (out / "seed3" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["steps"] == 32 and lines[-1]["mean_return"] is not None
    assert json.loads((out / "config.json").read_text())["seeds"] == [3]
    policy = str(out / "seed3" / "policy.zip")
    again = ["--worlds", "9000000-9000001", "--horizon", "3", "--context-frames", "3", "--checkpoint", "debug"]
    for name in ("a", "b"):
        evaluate.main([*again, "--world", world, "--policy", policy, "--out", str(tmp_path / f"{name}.json")])
    report = json.loads((tmp_path / "a.json").read_text())
    assert report == json.loads((tmp_path / "b.json").read_text())
    assert sorted(report["players"]) == sorted(["random", "noop", "oracle", policy])
    assert len(report["players"][policy]["episodes"]) == 2
    assert 0 == report["players"]["noop"]["success"] < report["players"]["noop"]["upper"] <= 1


@pytest.mark.parametrize("task", ["reach_landmark", "explore"])
def test_policies_are_read_without_their_pickles(task, tmp_path):
    out = tmp_path / "run"
    small = ["--steps", "16", "--num-envs", "2", "--context-frames", "3", "--horizon", "4", "--checkpoint", "debug"]
    assert ppo.main([*small, "--world", "voxel", "--task", task, "--out", str(out)]) == 0
    path = out / "seed0" / "policy.zip"
    bare = tmp_path / "bare.zip"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(bare, "w") as copy:
        for name in whole.namelist():
            copy.writestr(name, b"{}" if name == "data" else whole.read(name))
    saved = ppo.PPO.load(path, device="cpu", custom_objects={"learning_rate": 0.0, "clip_range": 0.2}).policy
    saved.set_training_mode(False)
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with_goal = isinstance(saved.observation_space, spaces.Dict)
    batch = {"frame": frame, "goal": np.ones((1, 3), np.float32)} if with_goal else frame
    for policy in (load_policy(path), load_policy(bare)):
        with torch.no_grad():
            mine, theirs = (p.get_distribution(p.obs_to_tensor(batch)[0]).distribution.probs for p in (policy, saved))
        torch.testing.assert_close(mine, theirs)


def test_the_dream_trains_from_the_vector_environment():
    config = ppo.PPOConfig(checkpoint="debug", num_envs=2, context_frames=3)
    env = ppo.make_env(config)
    assert isinstance(env.env, DecMemVectorEnv)
    assert env.observation_space["frame"].shape == (64, 64, 3)
    env.close()


def test_errors_are_one_line(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_policy(tmp_path / "none.zip")
    (tmp_path / "bad.zip").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be read"):
        load_policy(tmp_path / "bad.zip")
    for arguments, message in (
        (["--policy", str(tmp_path / "none.zip")], "does not exist"),
        (["--worlds", "x"], "expected A-B"),
        (["--worlds", "1-2", "--episodes", "3"], "expected 1 to 2"),
        (["--world", "dream", "--checkpoint", "nowhere"], "nowhere"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([*arguments, "--out", str(tmp_path / "a.json")])
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1
    with pytest.raises(SystemExit):
        ppo.main(["--checkpoint", "nowhere", "--out", str(tmp_path / "r")])
    assert "nowhere" in capsys.readouterr().err
