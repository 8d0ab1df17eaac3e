import numpy as np
import pytest

from decmem_env.conventions.poses import is_exact
from decmem_env.revisit.beside import OFFSETS, moved
from decmem_env.revisit.matches import EXACT, NEAR, in_gap, match_poses
from decmem_env.revisit.scripts import KINDS, build_long_run, context_frames, generated_frames
from decmem_env.revisit.worlds import build_course

GAP = 60


@pytest.fixture(scope="module")
def course():
    return build_course([7_000_000, 7_000_001], KINDS, GAP)


def test_every_kind_comes_back_in_time(course):
    assert not course.missing and len(course.scripts) == 2 * len(KINDS)
    for script in course.scripts:
        assert script.context == context_frames(GAP) and script.generated == generated_frames(GAP)
        assert script.actions.shape == (len(script.poses), 25) and not script.actions[0].any()
        found = match_poses(script.poses, script.context)
        label = NEAR if (script.world + KINDS.index(script.kind)) % 2 else EXACT
        hits = (found.label == label) & found.left & found.in_context & in_gap(found.gap, GAP)
        assert hits.sum() >= 1, script.kind


def test_both_classes_and_both_grids(course):
    assert {script.grid for script in course.scripts} == {True, False}
    for script in course.scripts:
        on_grid = np.abs(script.poses[:, 4] / 15.0 - np.round(script.poses[:, 4] / 15.0)).max() < 1e-6
        assert on_grid == script.grid, script.kind


def test_scripts_repeat(course):
    again = build_course([7_000_001], KINDS, GAP)
    first = [script for script in course.scripts if script.world == 7_000_001]
    for a, b in zip(first, again.scripts, strict=True):
        assert a.kind == b.kind and np.array_equal(a.poses, b.poses) and np.array_equal(a.actions, b.actions)


def test_long_run_follows_its_loop():
    from decmem_env.worlds import generate_world

    script = build_long_run(generate_world(7_000_002), generated=120)
    assert script is not None and script.context > 100 and script.generated == 120
    assert is_exact(script.poses[script.context - 1], script.poses[0])
    found = match_poses(script.poses, script.context)
    late = found.label[script.context + 20 :]
    assert (late > 0).mean() > 0.8
    exact = (late == EXACT).mean()
    assert exact < 0.5  # jittered off the grid


def test_offsets_are_turns_and_steps_in_the_players_own_axes():
    pose = np.array([1.0, 2.0, 3.0, 10.0, 90.0])
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(moved(pose, OFFSETS["exact"], rng), pose)
    turned = moved(pose, OFFSETS["yaw_8"], rng) - pose
    assert abs(turned[4]) == 8.0 and not turned[:4].any()
    ahead, side = moved(pose, OFFSETS["ahead_1"], rng) - pose, moved(pose, OFFSETS["side_1"], rng) - pose
    np.testing.assert_allclose(ahead[:3], [-1.0, 0.0, 0.0], atol=1e-9)  # a yaw of 90 degrees looks along -x
    np.testing.assert_allclose(np.abs(side[:3]), [0.0, 0.0, 1.0], atol=1e-9)
