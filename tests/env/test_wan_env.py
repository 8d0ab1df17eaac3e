"""The full-size model's path through the environment, at the size of a test: 16 frames a step, one latent for four."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from decmem_env.conventions.actions import parse_action_string
from decmem_env.rollout import lacking_frames, whole_context

DREAM = "DecMem-Minecraft-v0"
WALK, TURN = 1, 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers this small are many times slower where threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as `decmem checkpoint convert` leaves it."""
    from decmem_env.model import WorldModel

    folder = tmp_path_factory.mktemp("wan") / "checkpoint"
    with pytest.warns(UserWarning, match="wan-debug: random weights"):
        WorldModel.from_pretrained("wan-debug").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def env(checkpoint):
    made = gym.make(DREAM, checkpoint=checkpoint, device="cpu", context_frames=20)
    yield made
    made.close()


def test_a_size_without_weights_says_so_and_one_folder_replaces_it(env):
    with pytest.warns(UserWarning, match="decmem checkpoint convert PATH --preset wan-debug") as said:
        named = gym.make(DREAM, checkpoint="wan-debug", device="cpu", context_frames=13, memory_budget=1 << 27)
    assert len(said) == 1 and named.unwrapped.model.name == "wan-debug"
    named.close()
    assert env.unwrapped.model.config == named.unwrapped.model.config


def test_a_step_is_sixteen_frames_of_one_held_action(env):
    frame, info = env.reset(seed=3, options={"world_seed": 8_000_000})
    assert env.observation_space.contains(frame) and frame.shape == (64, 112, 3)
    assert info["memory_frames"] == 8 and info["frame_index"] == 0, "20 frames become 13 + 16, in 4 + 4 latents"
    start = env.unwrapped._row.simulator.snapshot()
    frame, _, terminated, truncated, info = env.step(WALK)
    frames = env.unwrapped.stats["frames"]
    assert frames.shape == (16, 64, 112, 3) and np.array_equal(frames[-1], frame) and not terminated | truncated
    assert info["memory_frames"] == 12 and info["frame_index"] == 16 and info["pose_source"] == "truth"
    assert not np.array_equal(frames[0], frames[-1])
    player = env.unwrapped._row.simulator
    end = player.snapshot()
    player.restore(start)
    held = parse_action_string("W*16")
    poses = np.concatenate([player.step(action[None]) for action in held])
    player.restore(end)
    assert np.array_equal(poses[-1], info["pose"]), "the player walks through all sixteen frames"
    latent = env.unwrapped.session.pending
    assert np.array_equal(latent.poses, poses[3::4]) and np.array_equal(latent.actions, held.reshape(4, 100))


def test_snapshots_and_forks_go_on_alike(env):
    env.reset(seed=1)
    env.step(WALK)
    frozen = env.unwrapped.snapshot()
    expected, *_, info = env.step(TURN)
    env.unwrapped.restore(frozen)
    twin, other = env.unwrapped.fork(2)
    assert np.array_equal(twin.step(TURN)[0], expected) and not np.array_equal(other.step(TURN)[0], expected)
    again, *_, same = env.step(TURN)
    assert np.array_equal(again, expected) and np.array_equal(same["pose"], info["pose"])
    assert same["frame_index"] == 32 and same["memory_frames"] == info["memory_frames"] == 16
    for child in (twin, other):
        child.close()


def test_rows_of_a_batch_do_what_single_ones_do(checkpoint, env):
    many = gym.make_vec(DREAM, num_envs=2, checkpoint=checkpoint, device="cpu", context_frames=20)
    many.reset(seed=[4, 5])
    frames, *_ = many.step(np.array([WALK, TURN]))
    env.reset(seed=5)
    single, *_ = env.step(TURN)
    difference = np.abs(frames[1].astype(int) - single.astype(int))
    assert frames.shape == (2, 64, 112, 3) and difference.max() <= 1
    many.close()


def test_one_image_becomes_the_shortest_context(env):
    image = np.random.default_rng(0).integers(0, 256, (72, 126, 3), dtype=np.uint8)
    frame, info = env.reset(seed=0, options={"image": image})
    assert info["memory_frames"] == 4 and info["pose_source"] == "kinematic" and frame.shape == (64, 112, 3)
    assert env.step(WALK)[-1]["frame_index"] == 16


def test_contexts_are_lengthened_to_whole_chunks(env):
    model = env.unwrapped.model
    lengths = {count: count + lacking_frames(model, count) for count in (1, 12, 13, 14, 29, 30, 221)}
    assert lengths == {1: 13, 12: 13, 13: 13, 14: 29, 29: 29, 30: 45, 221: 221}
    frames = np.arange(14, dtype=np.uint8)[:, None, None, None]
    longer, _, poses = whole_context(model, frames, np.zeros((14, 25), np.float32), np.arange(70.0).reshape(14, 5))
    assert longer.ravel().tolist() == [0] * 15 + list(range(14)) and np.array_equal(poses[:15], poses[[0] * 15])


def test_progress_counts_video_frames(env):
    session, told = env.unwrapped.model.start(), []
    frames = torch.zeros(29, 64, 112, 3, dtype=torch.uint8)
    session.observe(frames, np.zeros((29, 25), np.float32), np.zeros((29, 5)), told.append)
    session.observe(frames[:16], np.zeros((16, 25), np.float32), np.zeros((16, 5)), told.append)
    assert sum(told) == 45 and sum(told[:-1]) == 29
    session.close()
