"""Tasks as pure functions: rewards, success, goals; and starts from which they can be won."""

from __future__ import annotations

import numpy as np
import pytest

from decmem_env.conventions.poses import wrap_degrees
from decmem_env.start import context_plan, make_start, reachable_starts
from decmem_env.tasks import TASKS, goal_vector, make_task, stack, unstack
from decmem_env.tour import SHORTEST
from decmem_env.worlds import Simulator

NOTHING = np.zeros((1, 25), np.float32)
FRAME = np.zeros((1, 2, 2, 3), np.uint8)


def play(task, poses, landmark=None):
    state = task.begin(poses[0], landmark)
    results = []
    for pose in poses[1:]:
        rewards, terminated, state = task.step(FRAME, np.asarray(pose, float)[None], NOTHING, state)
        results.append((float(rewards[0]), bool(terminated[0])))
    return results, state


def test_reach_landmark_pays_progress_turning_and_arrival():
    task = make_task("reach_landmark")
    poses = [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 30], [0, 5, 7.5, 0, 0]]
    results, _ = play(task, poses, landmark=[0.0, 0.0, 10.0])
    assert results[0] == (pytest.approx(0.1), False)
    assert results[1] == (pytest.approx(-30 / 180), False)
    assert results[2] == (pytest.approx(0.65 + 30 / 180 + 1), True)
    with pytest.raises(ValueError, match="needs a voxel world"):
        task.begin(poses[0], None)


def test_shaping_cannot_be_farmed():
    poses = [[0, 0, 0, 0, 0], [0, 0, 1, 0, 30], [1, 0, 1, 0, -45], [0, 0, 0, 0, 0]]
    results, _ = play(make_task("reach_landmark"), poses, landmark=[3.0, 0.0, 10.0])
    assert sum(reward for reward, _ in results) == pytest.approx(0.0)


def test_return_home_needs_a_way_away():
    task = make_task("return_home")
    home, near, away = [0, 0, 0, 0, 170], [0, 0, 3, 0, 170], [0, 0, 6.5, 0, 0]
    assert play(task, [home, near, home])[0] == [(0.0, False), (0.0, False)]
    results, _ = play(task, [home, away, [0, 0, 0.9, 0, 149], [0, 0, 0.9, 0, -175]])
    assert results == [(0.0, False), (0.0, False), (1.0, True)]


def test_explore_pays_new_cells_only():
    results, _ = play(
        make_task("explore"), [[0.5, 0, 0.5, 0, 0], [1.5, 0, 1.5, 0, 0], [2.5, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    )
    assert results == [(0.0, False), (pytest.approx(0.1), False), (0.0, False)]
    with pytest.raises(ValueError, match="no goal"):
        make_task("explore").goal(np.zeros((1, 5)), {})


@pytest.mark.parametrize("name", TASKS)
def test_batches_equal_rows_and_states_are_not_changed(name):
    task = make_task(name)
    rng = np.random.default_rng(0)
    poses = rng.normal(0, 6, (4, 5))
    states = [task.begin(pose, [9.0, 0.0, 2.0]) for pose in poses]
    kept = [{k: v.copy() for k, v in state.items()} for state in states]
    moved = poses + rng.normal(0, 3, (4, 5))
    rewards, terminated, after = task.step(FRAME.repeat(4, 0), moved, NOTHING.repeat(4, 0), stack(states))
    for i, one in enumerate(unstack(after)):
        alone = task.step(FRAME, moved[i : i + 1], NOTHING, states[i])
        assert alone[0][0] == rewards[i] and alone[1][0] == terminated[i]
        assert all(np.array_equal(alone[2][key], one[key]) for key in one)
    for state, copy in zip(states, kept, strict=True):
        assert all(np.array_equal(state[key], copy[key]) for key in copy)


def test_goal_vector_points_right_for_right():
    # Yaw 0 looks south (+z); west (-x) is on the right hand.
    goals = goal_vector(np.zeros((4, 5)), np.array([[0, 0, 10], [-10, 9, 0], [10, 0, 0], [0, 0, -200]], float))
    assert np.allclose(goals, [[0.5, 0, 1], [0.5, 1, 0], [0.5, -1, 0], [4, 0, -1]], atol=1e-6)
    assert goals.dtype == np.float32


def test_unknown_tasks_are_refused():
    assert make_task(None) is None
    with pytest.raises(ValueError, match="unknown task 'fly'"):
        make_task("fly")


@pytest.mark.parametrize("length", [1, 2, 3, 8, 25, 30, 64])
def test_contexts_have_their_length_and_come_back(length):
    for seed in range(4):
        plan = context_plan(np.random.default_rng(seed), length)
        assert plan.shape == (length, 25) and not plan[0].any()
        assert plan[:, 16].sum() in (0, 24, -24)
        assert plan[:, 11].sum() == plan[:, 12].sum()


def test_long_contexts_are_tours_that_come_home():
    for seed in (9_000_000, 9_000_005):
        length = 2 * SHORTEST
        start = make_start(
            np.random.default_rng(0), {"world_seed": seed}, context_frames=length, landmark=False, size=(96, 160)
        )
        assert start.actions.shape == (length, 25) and start.poses.shape == (length, 5)
        home, away = start.poses[0], np.linalg.norm(start.poses[:, :3] - start.poses[0, :3], axis=1)
        assert away.max() > 8.0 and away[-1] < 1.5
        assert abs(float(wrap_degrees(start.poses[-1, 4] - home[4]))) < 1e-6
        far = start.poses[away > 8.0]
        assert np.ptp(far[:, 4]) > 300.0, "it looks around there"


def test_starts_are_in_reach_of_their_landmark():
    for seed in (9_000_000, 9_000_001, 9_000_002):
        start = make_start(
            np.random.default_rng(0), {"world_seed": seed}, context_frames=64, landmark=True, size=(96, 160)
        )
        pose, target = start.poses[-1], start.landmark
        assert 8 <= np.hypot(pose[0] - target[0], pose[2] - target[2]) <= 14
        goal = goal_vector(pose, target)
        assert abs(np.degrees(np.arctan2(goal[1], goal[2]))) <= 60 + 7.5 + 12  # rounding, and a context pushed aside
        assert np.array_equal(start.simulator.poses[0], pose)


def test_reachable_starts_are_reachable_and_fixed():
    starts = reachable_starts(9_000_003)
    assert starts
    pose, target = starts[0]
    from decmem_env.start import cached_world

    simulator = Simulator([cached_world(9_000_003)], pose[None])
    action = np.zeros((1, 25), np.float32)
    action[0, 11] = 1.0
    reached = [np.hypot(*(simulator.step(action)[0, [0, 2]] - target[[0, 2]])) <= 3.0 for _ in range(40)]
    assert any(reached)
    reachable_starts.cache_clear()
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(starts, reachable_starts(9_000_003), strict=True))
