import numpy as np
import pytest

from decmem_env.conventions.poses import is_near
from decmem_env.worlds import Simulator, generate_world, revisit_script, sample_trajectories
from decmem_env.worlds.trajectories import KINDS, SCRIPT_KINDS, revisit_gaps

GAP, CONTEXT = 60, 64


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
    gaps = [revisit_gaps(path)[0] for path in walks.poses]
    assert len(back) == 8 and np.mean([(g >= 10).mean() for g in gaps]) > 0.15


@pytest.mark.parametrize("kind", SCRIPT_KINDS)
@pytest.mark.parametrize("near", [False, True])
def test_scripts_come_back_after_the_gap(kind, near):
    """A script's frames are counted again here, by the definitions of the measures."""
    made = [
        revisit_script(generate_world(s), kind, GAP, CONTEXT, np.random.default_rng(s), near=near) for s in range(3)
    ]
    made = [script for script in made if script is not None]
    assert made, "no world of three gave a script"
    for actions, poses, context in made:
        assert len(actions) == len(poses) > context >= CONTEXT
        gaps, exact = revisit_gaps(poses)
        hits = (gaps >= GAP) & (gaps <= 1.25 * GAP) & (exact != near)
        hits[:context] = False
        assert hits.any()


def test_script_is_what_the_simulator_says(worlds):
    actions, poses, _ = revisit_script(worlds[1], "turn_away", GAP, CONTEXT, np.random.default_rng(0))
    simulator = Simulator([worlds[1]], poses[:1])
    walked = [simulator.step(action[None])[0] for action in actions[1:]]
    np.testing.assert_array_equal(np.stack(walked), poses[1:])


def test_gap_counts_from_where_the_view_was_left():
    yaw = np.array([0, 0, 30, 60, 90, 60, 30, 0, 0.0])
    poses = np.zeros((9, 5))
    poses[:, 4] = yaw
    gaps, exact = revisit_gaps(poses)
    assert gaps[7] == 6 and exact[7] and gaps[8] == 7  # back at 0 after frame 1
    assert gaps[4] == -1 and not exact[4]


def test_unknown_kind(worlds):
    with pytest.raises(ValueError, match="unknown trajectory kind"):
        sample_trajectories(worlds, 8, np.random.default_rng(0), kind="dance")
