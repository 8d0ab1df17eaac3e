"""Walk along given poses under the true physics, with the actions that do it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM, CAMERA_STEP_DEGREES, Action
from ..conventions.poses import WALK_SPEED, wrap_degrees


def follow(simulator: Any, targets: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Steer every player of a simulator towards one target pose after another.

    Args:
        simulator: A `worlds.Simulator` with n players.
        targets: [n, T, 5]; heights are left to the physics.

    Returns:
        The actions taken [n, T, 25] and the poses reached [n, T, 5].
    """
    actions, poses = [], []
    for t in range(targets.shape[1]):
        action = steer(np.asarray(simulator.poses, np.float64), targets[:, t])
        poses.append(np.array(simulator.step(action), np.float64))
        actions.append(action)
    return np.stack(actions, 1), np.stack(poses, 1)


def steer(poses: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float32]:
    """Actions that bring players from poses [n, 5] towards targets [n, 5] in one frame, float32 [n, 25]."""
    action = np.zeros((len(poses), ACTION_DIM), np.float32)
    turn = wrap_degrees(targets[:, 3:] - poses[:, 3:]) / CAMERA_STEP_DEGREES
    action[:, Action.CAMERA_PITCH], action[:, Action.CAMERA_YAW] = turn[:, 0], turn[:, 1]
    yaw = np.radians(targets[:, 4])  # the player turns first, then walks
    dx, dz = targets[:, 0] - poses[:, 0], targets[:, 2] - poses[:, 2]
    ahead = np.clip((-np.sin(yaw) * dx + np.cos(yaw) * dz) / WALK_SPEED, -1, 1)
    right = np.clip((-np.cos(yaw) * dx - np.sin(yaw) * dz) / WALK_SPEED, -1, 1)
    action[:, Action.FORWARD], action[:, Action.BACK] = np.maximum(ahead, 0), np.maximum(-ahead, 0)
    action[:, Action.RIGHT], action[:, Action.LEFT] = np.maximum(right, 0), np.maximum(-right, 0)
    return action
