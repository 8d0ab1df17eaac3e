"""One environment: the API checks, replay, starts, spaces, errors, snapshots."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from decmem_env.conventions.actions import parse_action_string
from decmem_env.conventions.clips import Clip, write_clip
from decmem_env.conventions.poses import integrate_kinematic

DREAM, TRUE = "DecMem-Minecraft-v0", "DecMem-Voxel-v0"
in_the_dream = pytest.mark.parametrize("env_id", [DREAM], indirect=True)
in_the_true_world = pytest.mark.parametrize("env_id", [TRUE], indirect=True)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))


def equal(a, b):
    return all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task": "reach_landmark", "obs_size": (64, 64), "action_mode": "multidiscrete"},
        {"task": "explore", "obs_mode": "frame_pose", "action_mode": "dict"},
    ],
)
def test_gymnasium_check(make, options, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make(**options, disable_env_checker=True)
    with warnings.catch_warnings():
        if options.get("action_mode") == "dict":  # degrees are the unit of MineRL's camera
            warnings.filterwarnings("ignore", message=".*normalized space.*")
        check_env(env.unwrapped, skip_render_check=bool(options))


@pytest.mark.parametrize(
    "options", [{"action_mode": "multidiscrete"}, {"task": "reach_landmark", "obs_size": (64, 64)}]
)
def test_sb3_check(make, options):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(**options).unwrapped, warn=True)


def test_replay_is_bitwise(make):
    actions = [1, 1, 5, 6, 9, 10, 11, 0, 3]
    runs = []
    for env in (make(), make()):
        steps = [env.reset(seed=7)]
        steps += [env.step(a) for a in actions]
        runs.append(steps)
    assert all(equal(a, b) for a, b in zip(*runs, strict=True))
    other, _ = make().reset(seed=8)
    assert not same(other, runs[0][0][0])


def test_replay_is_bitwise_across_processes(env_id):
    code = f"""
import hashlib, gymnasium as gym, decmem_env, torch
torch.set_num_threads(1)
options = {{"checkpoint": "debug"}} if "Minecraft" in {env_id!r} else {{}}
env = gym.make({env_id!r}, device="cpu", context_frames=3, **options)
digest = hashlib.sha256(env.reset(seed=11)[0].tobytes())
env.action_space.seed(11)
for _ in range(60):
    digest.update(env.step(env.action_space.sample())[0].tobytes())
print(digest.hexdigest())
"""
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) == 65


@in_the_dream
def test_the_example_in_the_docstring(env_id):
    module = importlib.import_module("decmem_env.env")
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted >= 5) == (0, True)


def test_info_has_four_facts(make, env_id):
    env = make()
    _, info = env.reset(seed=1)
    _, _, _, _, after = env.step(1)
    for facts in (info, after):
        assert list(facts) == ["pose", "pose_source", "frame_index", "memory_frames"]
        assert facts["pose"].shape == (5,) and facts["pose"].dtype == np.float64
        assert facts["pose_source"] == "truth"
    assert (info["frame_index"], after["frame_index"]) == (0, 1)
    assert after["memory_frames"] == (4 if env_id == DREAM else 0)
    assert not np.shares_memory(info["pose"], after["pose"])
    stats = env.unwrapped.stats
    assert stats["world_seed"] >= 9_000_000 and stats["frames"].shape == (1, 96, 160, 3)


@pytest.mark.parametrize("mode", ["discrete", "multidiscrete", "dict", "vector", "pose"])
def test_every_action_mode_moves(make, mode):
    env = make(action_mode=mode)
    _, info = env.reset(seed=3)
    turned = info["pose"] + [0, 0, 0, 0, 15.0]
    action = {
        "discrete": 6,
        "multidiscrete": np.array([0, 0, 0, 2, 0, 0]),
        "dict": {**{k: 0 for k in ("forward", "back", "left", "right", "jump", "attack", "use")}, "camera": [0, 15.0]},
        "vector": parse_action_string("R")[0],
        "pose": turned,
    }[mode]
    if mode == "dict":
        action["camera"] = np.array(action["camera"], np.float32)
    _, _, _, _, after = env.step(action)
    assert abs((after["pose"][4] - turned[4] + 180) % 360 - 180) < 1e-4
    assert after["pose_source"] == ("given" if mode == "pose" else "truth")
    env.action_space.seed(0)
    for _ in range(3):
        frame, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(frame)


@pytest.mark.parametrize(
    ("mode", "action", "message"),
    [
        ("discrete", 12, "out of range"),
        ("discrete", 1.5, "expected one integer"),
        ("multidiscrete", [0, 0, 0, 3, 0, 0], "yaw=3"),
        ("dict", {"fly": 1}, "unknown action key 'fly'"),
        ("dict", 3, "expected a dict"),
        ("vector", np.zeros(24), "expected 25 floats"),
        ("vector", np.full(25, np.nan), "NaN"),
        ("pose", [0, 0, 0, 91.0, 0], "pitch 91 is out of range"),
        ("pose", [0, 0, np.nan, 0, 0], "NaN"),
    ],
)
def test_bad_actions_are_named_and_nothing_moves(make, mode, action, message):
    env = make(action_mode=mode).unwrapped
    _, before = env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert np.array_equal(env._rows.info(env._row)["pose"], before["pose"])


def test_obs_modes_and_sizes(make):
    env = make(obs_mode="frame_pose", obs_size=(32, 48), render_mode="rgb_array")
    obs, info = env.reset(seed=0)
    assert obs["frame"].shape == (32, 48, 3) and np.array_equal(obs["pose"], info["pose"])
    assert env.render().shape == (96, 160, 3)
    big = env.render().reshape(32, 3, 160, 3).astype(float).mean(1)
    assert np.abs(big.mean((0, 1)) - obs["frame"].astype(float).mean((0, 1))).max() < 1.5  # areas keep the mean
    assert env.observation_space.contains(obs)


@in_the_dream
def test_settings_are_checked(make):
    for kwargs, message in (
        ({"obs_mode": "frame_goal"}, "needs a task with a goal"),
        ({"obs_mode": "pixels"}, "unknown obs_mode"),
        ({"action_mode": "keys"}, "unknown action_mode"),
        ({"task": "sleep"}, "unknown task"),
        ({"pose_source": "gps"}, "unknown pose_source"),
        ({"obs_size": (64, 0)}, "obs_size"),
        ({"context_frames": 0}, "context_frames"),
        ({"world_seeds": (5, 4)}, "world_seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**kwargs)
    with pytest.raises(TypeError, match="unknown argument speed"):
        make(speed=2)


@in_the_dream
def test_the_checkpoint_that_is_missing_is_named(make):
    with pytest.raises(ValueError, match="debug"):
        make(DREAM, checkpoint="nowhere")


def test_step_before_reset_says_so(make):
    with pytest.raises(RuntimeError, match="call reset"):
        make().unwrapped.step(0)


@in_the_dream
def test_world_seed_picks_the_world_and_both_worlds_start_alike(make):
    dream, truth = make(DREAM), make(TRUE, samples=2)
    (a, info_a), (b, info_b) = (env.reset(seed=5, options={"world_seed": 9_123_456}) for env in (dream, truth))
    assert dream.unwrapped.stats["world_seed"] == 9_123_456
    assert np.array_equal(info_a["pose"], info_b["pose"])
    assert np.array_equal(a, b)
    for action in (1, 1, 5, 1, 9, 1):
        info_a, info_b = dream.step(action)[4], truth.step(action)[4]
        assert np.array_equal(info_a["pose"], info_b["pose"])


@in_the_dream
def test_kinematic_poses_walk_through_walls(make):
    env = make(DREAM, pose_source="kinematic")
    _, info = env.reset(seed=0)
    expected = info["pose"]
    for _ in range(6):
        expected = integrate_kinematic(expected, parse_action_string("W")[0])
        _, _, _, _, info = env.step(1)
    assert np.allclose(info["pose"], expected) and info["pose_source"] == "kinematic"
    with pytest.raises(ValueError, match="its own physics"):
        make(TRUE, pose_source="kinematic")


@in_the_dream
def test_starts_from_clip_frames_and_image(make, tmp_path):
    env = make(DREAM)
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)[None, :, None] // np.array([1, 2, 3], np.uint8)
    frames = np.broadcast_to(ramp, (5, 96, 160, 3)).copy()
    actions = parse_action_string("N W R L N")
    poses = np.zeros((5, 5)) + [3.0, 4.0, 5.0, 0.0, 90.0]
    write_clip(tmp_path / "a.mp4", Clip(frames, actions, poses))
    obs, info = env.reset(seed=0, options={"clip": tmp_path / "a.mp4"})
    assert np.array_equal(info["pose"], poses[-1])
    assert (info["pose_source"], info["memory_frames"], env.unwrapped.stats["world_seed"]) == ("kinematic", 5, None)
    assert np.abs(obs.astype(float) - frames[-1]).mean() < 4
    obs, info = env.reset(options={"frames": frames, "actions": actions})
    assert np.array_equal(obs, frames[-1]) and info["memory_frames"] == 5
    assert np.allclose(info["pose"], np.array([0, 0, 0.4317, 0, 0]))
    Image.fromarray(frames[0]).resize((320, 240)).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), frames[0]):
        obs, info = env.reset(options={"image": image})
        assert obs.shape == (96, 160, 3) and not info["pose"].any() and info["memory_frames"] == 1
    frame, *_ = env.step(1)
    assert env.observation_space.contains(frame)


@in_the_dream
def test_bad_starts_are_named(make, tmp_path):
    env = make(DREAM)
    frames = np.zeros((2, 96, 160, 3), np.uint8)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for options, message in (
        ({"level": 3}, "unknown level"),
        ({"clip": "a.mp4", "image": "b.png"}, "exclude each other"),
        ({"poses": np.zeros((2, 5))}, "belong to frames"),
        ({"frames": frames.astype(float)}, "expected uint8"),
        ({"frames": frames, "poses": np.zeros((3, 5))}, "one row a frame"),
        ({"frames": frames, "poses": np.full((2, 5), np.nan)}, "NaN"),
        ({"frames": frames, "actions": np.zeros((2, 8))}, "25"),
        ({"image": frames}, "a path or uint8"),
        ({"image": tmp_path / "broken.png"}, "no readable image"),
        ({"world_seed": -1}, "world_seed"),
        ({"world_seed": "7"}, "world_seed"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    for options in ({"clip": tmp_path / "none.mp4"}, {"image": tmp_path / "none.png"}):
        with pytest.raises(FileNotFoundError, match="none"):
            env.reset(options=options)
    with pytest.raises(ValueError, match="needs a voxel world"):
        make(DREAM, task="reach_landmark").reset(options={"image": frames[0]})
    with pytest.raises(ValueError, match="pose_source 'truth' needs"):
        make(DREAM, pose_source="truth").reset(options={"image": frames[0]})
    with pytest.raises(ValueError, match="world seeds only"):
        make(TRUE).reset(options={"image": frames[0]})


def test_a_failed_reset_leaves_the_episode_alone(make):
    env = make().unwrapped
    env.reset(seed=0)
    env.step(1)
    with pytest.raises(ValueError):
        env.reset(options={"world_seed": -1})
    assert env.step(1)[4]["frame_index"] == 2


@pytest.mark.parametrize("task", [None, "reach_landmark", "return_home", "explore"])
def test_snapshot_and_restore(make, task):
    env = make(task=task).unwrapped
    env.reset(seed=2)
    for action in (1, 11, 10):
        env.step(action)
    frozen = env.snapshot()
    before = env._rows.observe(env._row)
    first = [env.step(a) for a in (1, 5, 1)]
    obs, info = env.restore(frozen)
    assert same(obs, before) and info["frame_index"] == 3
    assert all(equal(a, b) for a, b in zip(first, [env.step(a) for a in (1, 5, 1)], strict=True))
    later = env.reset()
    env.restore(frozen)
    [env.step(a) for a in (1, 5, 1)]
    assert equal(later, env.reset())


def test_snapshots_of_another_kind_are_refused(make):
    one, other = make().unwrapped, make(task="explore").unwrapped
    one.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="with task explore"):
        one.restore(other.snapshot())
    assert one.step(1)[4]["frame_index"] == 1


def test_fork(make, env_id):
    env = make().unwrapped
    env.reset(seed=2)
    env.step(1)
    children = env.fork(3)
    steps = [[child.step(a) for a in (1, 6, 1)] for child in children]
    own = [env.step(a) for a in (1, 6, 1)]
    assert all(equal(a, b) for a, b in zip(own, steps[0], strict=True))
    assert np.array_equal(own[-1][4]["pose"], steps[1][-1][4]["pose"])
    if env_id == DREAM:  # children dream with noise of their own
        assert not np.array_equal(steps[0][0][0], steps[1][0][0])
        assert not np.array_equal(steps[1][0][0], steps[2][0][0])
    children[1].close()
    children[2].step(0)
    worlds = [child.reset() and child.stats["world_seed"] for child in (children[0], children[2])]
    assert worlds[0] != worlds[1]
    with pytest.raises(ValueError, match="at least 1"):
        env.fork(0)
    for child in children:
        child.close()


@in_the_true_world
def test_edits_show_in_the_true_world(make):
    env = make(TRUE, action_mode="vector")
    env.reset(seed=0, options={"world_seed": 9_000_001})
    before, *_ = env.step(parse_action_string("J*3").sum(0))
    after, *_ = env.step(parse_action_string("B")[0])
    assert len(env.unwrapped.stats["edits"]) == 1
    assert (np.abs(before.astype(int) - after) > 16).any(-1).sum() > 40


def test_time_limit_and_close(make):
    env = make(max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (False, True)
    env.close()
    env.close()


@in_the_dream
def test_human_rendering_uses_pygame(make, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make(render_mode="human")
    env.reset(seed=0)
    env.step(1)
    assert env.render() is None
    env.close()


@in_the_dream
def test_human_rendering_without_pygame_names_the_extra(make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pygame", None)
    env = make(render_mode="human")
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"decmem-env\[play\]"):
        env.reset(seed=0)


def test_unknown_render_modes_are_refused(make):
    with pytest.raises(ValueError, match="unknown render_mode"):
        type(make().unwrapped)(render_mode="ascii", device="cpu")
