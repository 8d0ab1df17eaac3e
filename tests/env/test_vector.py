"""Vector environments: rows do what single environments do, whatever their number; every autoreset mode."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

DREAM, TRUE = "DecMem-Minecraft-v0", "DecMem-Voxel-v0"
in_the_true_world = pytest.mark.parametrize("env_id", [TRUE], indirect=True)


def row(observations, i):
    return {k: v[i] for k, v in observations.items()} if isinstance(observations, dict) else observations[i]


def test_rows_are_single_environments(make, make_vec, env_id):
    vector, single = make_vec(3, task="reach_landmark"), make(task="reach_landmark")
    observations, infos = vector.reset(seed=20)
    assert vector.observation_space.contains(observations)
    assert infos["pose"].shape == (3, 5) and infos["_pose"].all()
    rng = np.random.default_rng(0)
    plan = rng.integers(0, 12, (4, 3))
    steps = [vector.step(actions) for actions in plan]
    for i in range(3):
        obs, info = single.reset(seed=20 + i)
        assert np.array_equal(obs["frame"], observations["frame"][i])
        assert np.array_equal(info["pose"], infos["pose"][i])
        for t, (many, rewards, terminated, truncated, facts) in enumerate(steps):
            obs, reward, done, _, info = single.step(int(plan[t, i]))
            assert np.array_equal(info["pose"], facts["pose"][i])
            assert (reward, done) == (rewards[i], terminated[i]) and not truncated[i]
            assert np.allclose(obs["goal"], many["goal"][i])
            difference = np.abs(obs["frame"].astype(int) - many["frame"][i])
            # Sums of another order on other batch sizes: one grey level at the first step.
            assert difference.max() == 0 if env_id == TRUE else difference.max() <= 1 or t > 0
            assert facts["memory_frames"][i] == info["memory_frames"]


def test_a_row_does_not_depend_on_their_number(make_vec):
    few, many = make_vec(1), make_vec(3)
    a, _ = few.reset(seed=[5])
    b, _ = many.reset(seed=[4, 5, 6])
    assert np.array_equal(a[0], b[1])
    for action in (1, 9, 5):
        infos_a, infos_b = few.step(np.array([action]))[4], many.step(np.array([0, action, 2]))[4]
        assert np.array_equal(infos_a["pose"][0], infos_b["pose"][1])


def test_next_step_is_the_default(make_vec):
    env = make_vec(2, max_episode_steps=2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0)
    env.step(np.array([1, 1]))
    last, _, terminated, truncated, infos = env.step(np.array([1, 1]))
    assert truncated.all() and not terminated.any() and "final_obs" not in infos
    fresh, rewards, terminated, truncated, infos = env.step(np.array([11, 11]))
    assert (infos["frame_index"] == 0).all() and not rewards.any() and not truncated.any()
    assert not np.array_equal(last, fresh)
    assert (env.step(np.array([1, 1]))[4]["frame_index"] == 1).all()


def test_same_step_keeps_the_final_observation(make_vec, make):
    env = make_vec(2, max_episode_steps=2, autoreset_mode="SAME_STEP")
    env.reset(seed=3)
    env.step(np.array([1, 1]))
    fresh, _, _, truncated, infos = env.step(np.array([1, 1]))
    assert truncated.all() and infos["_final_obs"].all()
    assert (infos["frame_index"] == 0).all() and (infos["final_info"]["frame_index"] == 2).all()
    single = make()
    single.reset(seed=3)
    single.step(1)
    wanted = single.step(1)[4]
    assert np.array_equal(infos["final_info"]["pose"][0], wanted["pose"])
    again, _ = single.reset()
    assert np.array_equal(again, fresh[0])


def test_disabled_resets_by_mask(make_vec):
    env = make_vec(3, max_episode_steps=2, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    env.step(np.ones(3, int))
    before = env.step(np.ones(3, int))
    with pytest.raises(RuntimeError, match="have ended"):
        env.step(np.ones(3, int))
    mask = np.array([True, False, True])
    observations, infos = env.reset(options={"reset_mask": mask})
    assert np.array_equal(observations[1], before[0][1]) and not np.array_equal(observations[0], before[0][0])
    assert infos["_pose"].tolist() == mask.tolist()
    for bad in (np.zeros(3, bool), np.ones(2, bool), np.ones(3)):
        with pytest.raises(ValueError, match="reset_mask"):
            env.reset(options={"reset_mask": bad})


@in_the_true_world
def test_world_seeds_of_rows(make_vec):
    env = make_vec(2)
    env.reset(seed=0, options={"world_seed": [9_000_005, 9_000_006]})
    assert [stats["world_seed"] for stats in env.stats] == [9_000_005, 9_000_006]
    env.reset(seed=0, options={"world_seed": 9_000_007})
    assert [stats["world_seed"] for stats in env.stats] == [9_000_007] * 2
    with pytest.raises(ValueError, match="2 entries|3 entries"):
        env.reset(options={"world_seed": [1, 2, 3]})


@in_the_true_world
def test_edits_stay_in_their_row(make_vec):
    env = make_vec(2, action_mode="multidiscrete", render_mode="rgb_array")
    env.reset(seed=[1, 1], options={"world_seed": 9_000_001})
    down = np.array([[0, 0, 2, 0, 0, 0]] * 2)
    for _ in range(3):
        env.step(down)
    env.step(np.array([[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]))
    assert [len(stats["edits"]) for stats in env.stats] == [1, 0]
    broken, whole = env.render()
    assert (np.abs(broken.astype(int) - whole) > 16).any(-1).sum() > 40


def test_arguments_are_checked(make_vec):
    for kwargs, message in (
        ({"autoreset_mode": "LATER"}, "unknown autoreset_mode"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"render_mode": "human"}, "unknown render_mode"),
    ):
        with pytest.raises(ValueError, match=message):
            make_vec(1, **kwargs)
    env = make_vec(2)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="seed has 3 entries"):
        env.reset(seed=[1, 2, 3])
    env.close()
    env.close()


def test_the_memory_of_many_worlds_on_a_gpu():
    from decmem_env.dream import _budget_of

    assert _budget_of(1, 140 << 30) is None and _budget_of(64, 24 << 30) is None  # the model's own
    assert _budget_of(64, 140 << 30) == 32 << 30 and _budget_of(256, 140 << 30) == 35 << 30
