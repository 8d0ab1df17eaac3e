import hashlib

import numpy as np
import pytest

from decmem_env.conventions.actions import CAMERA_STEP_DEGREES, Action
from decmem_env.conventions.poses import is_exact, is_near, wrap_degrees
from decmem_env.revisit.matches import match_poses
from decmem_env.worlds import Simulator, sample_trajectories, smooth_jitter
from decmem_env.worlds.blocks import PLACED
from decmem_env.worlds.trajectories import KINDS


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
@pytest.mark.parametrize("grid", [True, False])
def test_poses_are_what_the_simulator_says(worlds, kind, grid):
    walks = sample_trajectories(worlds, 40, np.random.default_rng(0), kind=kind, grid=grid, candidates=1)
    assert walks.actions.shape == (2, 40, 25) and walks.actions.dtype == np.float32
    assert walks.poses.shape == (2, 40, 5) and len(walks.kind) == 2
    assert not walks.actions[:, 0].any()
    simulator = Simulator(worlds, walks.poses[:, 0])
    for t in range(1, 40):
        np.testing.assert_array_equal(simulator.step(walks.actions[:, t]), walks.poses[:, t])
    on_grid = np.abs(walks.poses[..., 4] / 15 - np.round(walks.poses[..., 4] / 15)).max() < 1e-6
    assert on_grid == grid


def test_mixed_walks_stay_what_they_were(worlds):
    """Training runs and scripts of earlier versions draw from the same generator."""
    walks = sample_trajectories(worlds, 120, np.random.default_rng(5))
    assert hashlib.sha256(walks.actions.tobytes()).hexdigest()[:16] == "0eb55ce9cfb152f0"
    assert all(len(edits) == 0 for edits in walks.edits)


def test_returns_may_come_back_beside_the_way_out(worlds):
    """A view that comes back is then near an earlier one, where it would be exact without."""

    def exact_share(beside):
        walks = sample_trajectories(worlds * 2, 200, np.random.default_rng(6), "turn_away", candidates=1, beside=beside)
        late = range(40, 200, 5)
        return np.mean([is_exact(poses[t], poses[: t - 10]).any() for poses in walks.poses for t in late])

    assert exact_share(0.0) > exact_share(1.0) + 0.2


@pytest.mark.parametrize("grid", [True, False])
def test_edit_walks_change_blocks_and_come_back_to_them(worlds, grid):
    walks = sample_trajectories(worlds * 4, 256, np.random.default_rng(4), kind="edit", grid=grid)
    simulator = Simulator(worlds * 4, walks.poses[:, 0])
    for t in range(1, 256):
        np.testing.assert_array_equal(simulator.step(walks.actions[:, t]), walks.poses[:, t])
    seen_again = []
    for player, (poses, edits) in enumerate(zip(walks.poses, walks.edits, strict=True)):
        wanted = [(e.x, e.z, e.y, e.block) for e in simulator.edits if e.player == player]
        assert [tuple(row) for row in edits[:, 1:].tolist()] == wanted
        assert (np.diff(edits[:, 0]) > 0).all()
        for t in edits[:, 0]:
            assert walks.actions[player, t, [Action.ATTACK, Action.PLACE]].max() == 1
            seen_again.append(match_poses(poses, int(t) + 1).gap.max() >= 30)
    assert len(seen_again) >= 16 and np.mean(seen_again) > 0.5
    placed = np.concatenate(walks.edits)[:, 4] == PLACED
    assert 0.2 < placed.mean() < 0.8


def test_slow_walks_turn_slowly_and_stay_walks(worlds):
    walks = sample_trajectories(worlds * 8, 200, np.random.default_rng(3), grid=False, slow=1.0)
    turns = np.abs(walks.actions[..., Action.CAMERA_YAW]) * 15.0
    turned = turns[turns > 0.0]
    usual = sample_trajectories(worlds * 8, 200, np.random.default_rng(3), grid=False).actions[..., Action.CAMERA_YAW]
    assert np.mean(turned < 3.0) > 0.3 and np.mean(np.abs(usual[usual != 0.0]) * 15.0 < 3.0) < 0.02
    simulator = Simulator(worlds * 8, walks.poses[:, 0])
    for t in range(1, 200):
        np.testing.assert_array_equal(simulator.step(walks.actions[:, t]), walks.poses[:, t])
    steps = np.linalg.norm(np.diff(walks.poses[:, :, [0, 2]], axis=1), axis=-1)
    assert np.mean((steps > 0.0) & (steps < 0.2)) > 0.1
    grid = (sample_trajectories(worlds, 60, np.random.default_rng(3), slow=share).actions for share in (0.0, 1.0))
    np.testing.assert_array_equal(*grid)


def test_walks_are_reproducible_and_vary(worlds):
    first, again = (sample_trajectories(worlds, 60, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first.poses, again.poses)
    other = sample_trajectories(worlds, 60, np.random.default_rng(2))
    assert np.abs(first.poses - other.poses).max() > 1.0


def test_mixed_walks_mostly_move_and_come_back(worlds):
    walks = sample_trajectories(worlds * 4, 200, np.random.default_rng(3))
    moving = np.abs(np.diff(walks.poses, axis=1)).max(-1) > 1e-6
    assert moving.mean() > 0.6
    back = [is_near(path[-1], path).sum() for path in walks.poses]
    gaps = [match_poses(path, 1).gap for path in walks.poses]
    assert len(back) == 8 and np.mean([(g >= 10).mean() for g in gaps]) > 0.15


def test_unknown_kind(worlds):
    with pytest.raises(ValueError, match="unknown trajectory kind"):
        sample_trajectories(worlds, 8, np.random.default_rng(0), kind="dance")


def test_tilted_walks_look_up_or_down_all_the_way(worlds):
    worlds = worlds[:1]
    level = sample_trajectories(worlds * 8, 60, np.random.default_rng(6), "turn_away", grid=True, candidates=1)
    tilted = sample_trajectories(
        worlds * 8, 60, np.random.default_rng(6), "turn_away", grid=True, candidates=1, tilted=1.0
    )
    np.testing.assert_array_equal(level.actions, tilted.actions)
    assert (level.poses[:, 0, 3] == 0).all()
    assert len(set(tilted.poses[:, 0, 3].tolist())) > 2 and (tilted.poses[:, 0, 3] % 15 == 0).all()
    np.testing.assert_allclose(tilted.poses[..., 3] - level.poses[..., 3], tilted.poses[:, :1, 3] * np.ones((1, 60)))


def test_unsteady_eyes_wander_all_the_way(worlds):
    worlds = worlds[:1] * 8
    walks = sample_trajectories(worlds, 120, np.random.default_rng(6), "mixed", candidates=1, unsteady=1.0)
    pitch = walks.poses[..., 3]
    assert (np.ptp(pitch, axis=1) > 1.0).all() and np.abs(pitch).max() <= 60.0
    assert len(np.unique(np.round(np.ptp(pitch, axis=1)))) > 3  # some hardly, some a lot
    turned = np.diff(walks.poses[..., 3:], axis=1)
    asked = CAMERA_STEP_DEGREES * walks.actions[:, 1:, [Action.CAMERA_PITCH, Action.CAMERA_YAW]]
    np.testing.assert_allclose(wrap_degrees(turned - asked), 0.0, atol=1e-3)  # the actions tell of it
    aiming = sample_trajectories(worlds, 60, np.random.default_rng(6), "edit", candidates=1, unsteady=1.0)
    steady = sample_trajectories(worlds, 60, np.random.default_rng(6), "edit", candidates=1)
    np.testing.assert_array_equal(aiming.actions, steady.actions)


def test_jitter_is_slow_and_bounded():
    jitter = smooth_jitter(np.random.default_rng(1), 500, 6.0)
    assert len(jitter) == 500 and np.abs(jitter).max() <= 6.0 and np.abs(jitter).max() > 3.0
    assert np.abs(np.diff(jitter)).max() <= 1.0 + 1e-9
