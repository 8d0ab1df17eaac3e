"""Walks that run into walls."""

import numpy as np
import pytest

from decmem_env.conventions.poses import integrate_kinematic
from decmem_env.worlds import generate_world, sample_trajectories


@pytest.mark.parametrize("grid", [True, False])
def test_contact_walks_are_held_back_by_walls_and_climb(grid):
    worlds = [generate_world(7_000_100 + i) for i in range(4)]
    walks = sample_trajectories(worlds, 200, np.random.default_rng(0), kind="contact", grid=grid, candidates=6)
    off = np.abs(walks.poses[:, 1:] - integrate_kinematic(walks.poses[:, :-1], walks.actions[:, 1:]))
    held = (np.hypot(off[..., 0], off[..., 2]) > 1e-3).mean()
    assert 0.1 < held < 0.6
    assert (off[..., 1] > 1e-3).mean() > 0.05
    usual = sample_trajectories(worlds, 200, np.random.default_rng(0), kind="explore", grid=grid)
    off = np.abs(usual.poses[:, 1:] - integrate_kinematic(usual.poses[:, :-1], usual.actions[:, 1:]))
    assert (np.hypot(off[..., 0], off[..., 2]) > 1e-3).mean() < 0.5 * held
