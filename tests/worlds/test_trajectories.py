import numpy as np
import pytest

from decmem_env.conventions.poses import is_near
from decmem_env.revisit.matches import match_poses
from decmem_env.worlds import Simulator, sample_trajectories
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
