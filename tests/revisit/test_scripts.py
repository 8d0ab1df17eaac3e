import numpy as np
import pytest

from decmem_env.conventions.poses import is_exact
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
