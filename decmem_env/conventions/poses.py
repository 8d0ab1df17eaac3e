"""Poses and cameras, exactly as in WorldMem's data.

A pose is float64 `[x, y, z, pitch, yaw]`: the player's feet in blocks (x east, y up, z south) and degrees in
Minecraft's sense (pitch positive looks down; yaw 0 faces south = +z, 90 faces west = -x). WorldMem's camera-to-world
matrix has the axes +x = image left, +y = image up, +z = forward; OpenCV's camera (x right, y down) is that times
diag(-1, -1, 1, 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .actions import CAMERA_STEP_DEGREES, Action, validate_vector

Float = NDArray[np.float64]

EYE_HEIGHT = 1.62  # blocks above the feet
HAND_REACH = 5.0  # blocks from the eye within which a player breaks and places
VERTICAL_FOV = 70.0  # degrees
MAX_PITCH = 75.0  # degrees; five steps of 15, so that the grid of poses stays closed
WALK_SPEED = 0.4317  # blocks a frame at 10 frames/s (4.317 blocks/s)
TRANSLATION_SCALE = 16.0  # blocks; PRoPE sees translations divided by this

EXACT_DISTANCE, EXACT_ANGLE = 0.05, 1.0
NEAR_DISTANCE, NEAR_ANGLE = 2.0, 17.0


def wrap_degrees(angle: ArrayLike) -> Float:
    """Wrap degrees to [-180, 180)."""
    return (np.asarray(angle, np.float64) + 180.0) % 360.0 - 180.0


def validate_poses(poses: ArrayLike, name: str = "poses") -> Float:
    """Check poses and return them as float64.

    Args:
        poses: [..., 5].
        name: What to call the value in an error.

    Returns:
        float64 array of the same shape.

    Raises:
        ValueError: Wrong shape, or NaN or infinity (its first index is named).
    """
    array = np.asarray(poses, np.float64)
    if array.ndim == 0 or array.shape[-1] != 5:
        raise ValueError(f"{name} has shape {array.shape}: expected [..., 5] = x, y, z (blocks), pitch, yaw (degrees)")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name}{tuple(bad[0].tolist())} is NaN or infinite: expected finite blocks and degrees")
    return array


def look_vector(poses: ArrayLike) -> Float:
    """Unit view direction in the world, float64 [..., 3] (Minecraft's look vector)."""
    array = np.asarray(poses, np.float64)
    pitch, yaw = np.radians(array[..., 3]), np.radians(array[..., 4])
    return np.stack([-np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)


def camera_to_world(poses: ArrayLike) -> Float:
    """Camera-to-world matrices in WorldMem's axes, R = R_y(-yaw) R_x(pitch), translation at the eye.

    Args:
        poses: [..., 5].

    Returns:
        float64 [..., 4, 4]; camera axes +x image left, +y image up, +z forward.
    """
    array = np.asarray(poses, np.float64)
    pitch, yaw = np.radians(array[..., 3]), np.radians(-array[..., 4])
    cp, sp, cy, sy = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    matrix = np.zeros((*array.shape[:-1], 4, 4))
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = cy, sy * sp, sy * cp
    matrix[..., 1, 1], matrix[..., 1, 2] = cp, -sp
    matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2] = -sy, cy * sp, cy * cp
    matrix[..., :3, 3] = array[..., :3]
    matrix[..., 1, 3] += EYE_HEIGHT
    matrix[..., 3, 3] = 1.0
    return matrix


def world_to_camera_cv(poses: ArrayLike) -> Float:
    """World-to-camera matrices in OpenCV axes (x right, y down, z forward), float64 [..., 4, 4]."""
    camera = camera_to_world(poses) * np.array([-1.0, -1.0, 1.0, 1.0])
    rotation = np.swapaxes(camera[..., :3, :3], -1, -2)
    matrix = np.zeros_like(camera)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation, camera[..., :3, 3])
    matrix[..., 3, 3] = 1.0
    return matrix


def normalised_intrinsics(height: int, width: int, vertical_fov: float = VERTICAL_FOV) -> Float:
    """Intrinsics of square pixels with focal lengths divided by width and height, centre at 0.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        vertical_fov: Degrees.

    Returns:
        float64 [3, 3] = diag(fx / W, fy / H, 1).
    """
    focal = 0.5 * height / np.tan(np.radians(vertical_fov) / 2.0)
    return np.diag([focal / width, focal / height, 1.0])


def projective_matrices(
    poses: ArrayLike,
    intrinsics: ArrayLike,
    origin: ArrayLike | None = None,
    translation_scale: float = TRANSLATION_SCALE,
) -> tuple[Float, Float]:
    """PRoPE's lifted projection of each camera and its inverse (DecMem eq. 6-7, closed forms).

    Args:
        poses: [..., 5].
        intrinsics: [3, 3] or [..., 3, 3], normalised and upper triangular.
        origin: Pose [5] whose position becomes the origin (angles stay absolute); None keeps the world's.
        translation_scale: Blocks per unit of translation.

    Returns:
        `P = lift(K) T_cw` and `P_inv = T_cw^-1 lift(K^-1)`, float64 [..., 4, 4] each.
    """
    array = np.array(poses, np.float64)
    if origin is not None:
        array[..., :3] -= np.asarray(origin, np.float64)[..., :3]
    camera_from_world = world_to_camera_cv(array)
    camera_from_world[..., :3, 3] /= translation_scale
    world_from_camera = camera_to_world(array) * np.array([-1.0, -1.0, 1.0, 1.0])
    world_from_camera[..., :3, 3] /= translation_scale
    matrix_k = np.asarray(intrinsics, np.float64)
    lifted = np.zeros((*matrix_k.shape[:-2], 4, 4))
    lifted_inverse = np.zeros_like(lifted)
    lifted[..., :3, :3], lifted[..., 3, 3] = matrix_k, 1.0
    lifted_inverse[..., :3, :3], lifted_inverse[..., 3, 3] = np.linalg.inv(matrix_k), 1.0
    return lifted @ camera_from_world, world_from_camera @ lifted_inverse


def integrate_kinematic(pose: ArrayLike, action: ArrayLike) -> Float:
    """Dead-reckon the next pose: turn, then walk on the level; no collision, no gravity, no jump.

    Args:
        pose: [..., 5].
        action: [..., 25].

    Returns:
        float64 [..., 5]; yaw wrapped to [-180, 180), pitch clamped to `MAX_PITCH`.
    """
    result = np.array(pose, np.float64)
    vector = validate_vector(action).astype(np.float64)
    pitch = result[..., 3] + CAMERA_STEP_DEGREES * vector[..., Action.CAMERA_PITCH]
    result[..., 3] = np.clip(pitch, -MAX_PITCH, MAX_PITCH)
    result[..., 4] = wrap_degrees(result[..., 4] + CAMERA_STEP_DEGREES * vector[..., Action.CAMERA_YAW])
    ahead = vector[..., Action.FORWARD] - vector[..., Action.BACK]
    right = vector[..., Action.RIGHT] - vector[..., Action.LEFT]
    norm = np.maximum(np.hypot(ahead, right), 1.0)
    yaw = np.radians(result[..., 4])
    result[..., 0] += WALK_SPEED * (-np.sin(yaw) * ahead - np.cos(yaw) * right) / norm
    result[..., 2] += WALK_SPEED * (np.cos(yaw) * ahead - np.sin(yaw) * right) / norm
    return result


def pose_difference(pose: ArrayLike, others: ArrayLike) -> tuple[Float, Float]:
    """Distance in blocks and the larger of the pitch and yaw differences in degrees, both [...]."""
    a, b = np.asarray(pose, np.float64), np.asarray(others, np.float64)
    distance = np.linalg.norm(a[..., :3] - b[..., :3], axis=-1)
    angle = np.abs(wrap_degrees(a[..., 3:] - b[..., 3:])).max(-1)
    return distance, angle


def is_exact(pose: ArrayLike, others: ArrayLike) -> NDArray[np.bool_]:
    """Whether two views are the same: within 0.05 block and 1 degree of pitch and of yaw."""
    distance, angle = pose_difference(pose, others)
    return (distance <= EXACT_DISTANCE) & (angle <= EXACT_ANGLE)


def is_near(pose: ArrayLike, others: ArrayLike) -> NDArray[np.bool_]:
    """Whether two views are neighbours: within 2 blocks and 17 degrees (exact ones included)."""
    distance, angle = pose_difference(pose, others)
    return (distance <= NEAR_DISTANCE) & (angle <= NEAR_ANGLE)
