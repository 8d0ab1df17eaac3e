import numpy as np
import pytest

from decmem_env.conventions import actions as A
from decmem_env.conventions import poses as P


def _random_poses(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.normal(0, 20, (count, 3)), rng.uniform(-75, 75, (count, 1)), rng.uniform(-180, 180, (count, 1))], 1
    )


def test_look_vector_follows_minecraft():
    np.testing.assert_allclose(P.look_vector([0, 0, 0, 0, 0]), [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(P.look_vector([0, 0, 0, 0, 90]), [-1, 0, 0], atol=1e-12)
    assert P.look_vector([0, 0, 0, 30, 0])[1] < 0  # positive pitch looks down


def test_camera_axes_are_left_up_forward():
    poses = _random_poses(16)
    camera = P.camera_to_world(poses)
    np.testing.assert_allclose(camera[:, :3, 2], P.look_vector(poses), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(camera[:, :3, :3]), 1.0, atol=1e-12)
    # Facing south, image left is east (+x).
    np.testing.assert_allclose(P.camera_to_world([0, 0, 0, 0, 0])[:3, 0], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(camera[:, 1, 3], poses[:, 1] + P.EYE_HEIGHT)


def test_a_point_ahead_and_to_the_right_projects_there():
    pose = np.array([3.0, 5.0, -2.0, 0.0, 0.0])
    point = np.array(
        [3.0 - 1.0, 5.0 + P.EYE_HEIGHT + 1.0, -2.0 + 10.0, 1.0]
    )  # west = right when facing south; above the eye
    x, y, z, _ = P.world_to_camera_cv(pose) @ point
    assert z == pytest.approx(10) and x == pytest.approx(1) and y == pytest.approx(-1)


def test_intrinsics_match_worldmem():
    k = P.normalised_intrinsics(360, 640)
    assert k[0, 0] * 640 == pytest.approx(257.07, abs=0.01)
    assert k[0, 0] == pytest.approx(0.40167, abs=1e-5) and k[1, 1] == pytest.approx(0.71407, abs=1e-5)


def test_projective_inverse_and_relative_invariance():
    poses = _random_poses(6)
    k = P.normalised_intrinsics(96, 160)
    p, p_inverse = P.projective_matrices(poses, k, origin=poses[0])
    np.testing.assert_allclose(p @ p_inverse, np.broadcast_to(np.eye(4), (6, 4, 4)), atol=1e-10)
    q, q_inverse = P.projective_matrices(poses, k, origin=poses[3])
    np.testing.assert_allclose(p[1] @ p_inverse[2], q[1] @ q_inverse[2], atol=1e-10)  # the world's origin cancels


def test_kinematic_walk_and_turn():
    pose = np.zeros(5)
    walked = P.integrate_kinematic(pose, A.discrete_to_vector(A.DISCRETE_ACTIONS.index("forward")))
    np.testing.assert_allclose(walked[:3], [0, 0, P.WALK_SPEED], atol=1e-12)
    right = P.integrate_kinematic(pose, A.discrete_to_vector(A.DISCRETE_ACTIONS.index("right")))
    np.testing.assert_allclose(right[:3], [-P.WALK_SPEED, 0, 0], atol=1e-12)  # west is right of south
    turned = pose
    for _ in range(24):
        turned = P.integrate_kinematic(turned, A.discrete_to_vector(A.DISCRETE_ACTIONS.index("turn_right")))
    np.testing.assert_allclose(turned, pose, atol=1e-9)
    down = pose
    for _ in range(9):
        down = P.integrate_kinematic(down, A.discrete_to_vector(A.DISCRETE_ACTIONS.index("look_down")))
    assert down[3] == P.MAX_PITCH


def test_exact_and_near_thresholds():
    base = np.array([0, 0, 0, 0, 179.9])
    assert P.is_exact(base, [0.04, 0, 0, 0.9, -179.9])
    assert not P.is_exact(base, [0.06, 0, 0, 0, 179.9])
    assert P.is_near(base, [1.9, 0, 0, 16, -170])
    assert not P.is_near(base, [2.1, 0, 0, 0, 179.9]) and not P.is_near(base, [0, 0, 0, 0, -162])


def test_bad_poses_are_named():
    with pytest.raises(ValueError, match=r"poses\(1, 3\) is NaN"):
        P.validate_poses([[0, 0, 0, 0, 0], [0, 0, 0, np.nan, 0]])
    with pytest.raises(ValueError, match="expected \\[..., 5\\]"):
        P.validate_poses(np.zeros(4))
