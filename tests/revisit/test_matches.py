import numpy as np
import pytest

from decmem_env.revisit.matches import EXACT, NEAR, NEW, in_gap, match_poses


def path(yaws, xs=None):
    poses = np.zeros((len(yaws), 5))
    poses[:, 4] = yaws
    if xs is not None:
        poses[:, 0] = xs
    return poses


def test_turn_away_and_back():
    yaws = [0.0] * 4 + [15, 30, 45, 60, 75] + [90.0] * 20 + [75, 60, 45, 30, 15, 0, 0]
    found = match_poses(path(yaws), context=4)
    back = len(yaws) - 2
    # The last frame near yaw 0 before leaving is the one at 15 degrees, frame 4.
    assert found.label[back] == EXACT and found.last[back] == 4 and found.gap[back] == back - 4
    assert found.remembered[back] == 3  # the frame with the very same pose
    assert found.in_context[back] and found.left[back]
    # Frames on the way out are new: only their own approach is near them.
    assert (found.label[4:29] == NEW).all() and (found.gap[4:29] == 0).all()
    # 75 degrees on the way back: never left by more than 30 degrees, so it is matched only once the approach ends.
    assert found.label[29] == NEW
    # 45 degrees: seen on the way out, in generated frames only.
    assert found.label[31] == EXACT and not found.in_context[31]


def test_waiting_after_the_return_keeps_counting():
    yaws = [0.0] * 4 + [30, 60, 90, 90, 90, 90, 60, 30, 0, 0, 0]
    found = match_poses(path(yaws), context=4)
    assert found.gap[-3:].tolist() == [9, 10, 11]
    assert (found.last[-3:] == 3).all()


def test_near_and_thresholds():
    yaws = [0.0] * 3 + [90.0] * 9 + [10.0]
    found = match_poses(path(yaws), context=3)
    assert found.label[-1] == NEAR and found.gap[-1] == 10
    for yaw, label in ((0.9, EXACT), (1.1, NEAR), (16.9, NEAR), (17.1, NEW)):
        yaws[-1] = yaw
        assert match_poses(path(yaws), context=3).label[-1] == label, yaw
    xs = [0.0] * 12
    yaws[-1] = 0.0
    for x, label in ((0.04, EXACT), (0.06, NEAR), (1.9, NEAR), (2.1, NEW)):
        assert match_poses(path(yaws, [*xs, x]), context=3).label[-1] == label, x


def test_yaw_wraps_around():
    yaws = [179.8] * 3 + [90.0] * 9 + [-179.9]
    assert match_poses(path(yaws), context=3).label[-1] == EXACT


def test_a_path_that_stays_close_is_no_revisit():
    yaws = [0.0] * 4 + [30.0] * 20 + [0.0]  # 30 degrees is neither near nor far
    found = match_poses(path(yaws), context=4)
    assert found.label[-1] == EXACT and not found.left[-1]


def test_nearest_context_frame():
    yaws = [0.0, 30.0, 60.0, 90.0, 100.0, 41.0]
    found = match_poses(path(yaws), context=4)
    assert found.nearest[4] == 3 and found.nearest[5] == 1


def test_gap_band():
    assert in_gap(np.array([59, 60, 75, 76]), 60).tolist() == [False, True, True, False]


def test_bad_context_is_named():
    with pytest.raises(ValueError, match="context of 9"):
        match_poses(np.zeros((4, 5)), 9)
