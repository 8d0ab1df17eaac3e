"""Action and observation spaces, and the way from an action of any mode to the 25-vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from .conventions.actions import (
    ACTION_DIM,
    CAMERA_ENTRIES,
    DICT_KEYS,
    DISCRETE_ACTIONS,
    MAX_CAMERA_STEPS,
    MULTIDISCRETE_SIZES,
    dict_to_vector,
    discrete_to_vector,
    multidiscrete_to_vector,
    validate_vector,
)
from .conventions.poses import validate_poses, wrap_degrees
from .tasks import FURTHEST_GOAL

ACTION_MODES = ("discrete", "multidiscrete", "dict", "vector", "pose")
OBS_MODES = ("frame", "frame_pose", "frame_goal")
GOAL_LOW = np.array([0.0, -1.0, -1.0], np.float32)
GOAL_HIGH = np.array([FURTHEST_GOAL, 1.0, 1.0], np.float32)
# Poses an agent may ask for: blocks within 1,024 of the origin, 64 below to 320 above zero, any heading.
_POSE_LOW = np.array([-1024.0, -64.0, -1024.0, -90.0, -180.0])
_POSE_HIGH = np.array([1024.0, 320.0, 1024.0, 90.0, 180.0])
_FURTHEST = np.array([3e7, 3e7, 3e7, 90.0, 180.0])  # poses in observations: Minecraft's world border


def action_space(mode: str) -> spaces.Space[Any]:
    """Space of one of `ACTION_MODES`.

    Args:
        mode: `discrete` (the 12 names of `DISCRETE_ACTIONS`), `multidiscrete` (walk, strafe, pitch, yaw, jump, hand),
            `dict` (MineRL keys and `camera` = pitch, yaw change in degrees), `vector` (25 floats) or `pose` (absolute
            x, y, z, pitch, yaw; nothing is integrated).

    Returns:
        The space.

    Raises:
        ValueError: Unknown mode.
    """
    if mode == "discrete":
        return spaces.Discrete(len(DISCRETE_ACTIONS))
    if mode == "multidiscrete":
        return spaces.MultiDiscrete(np.array(MULTIDISCRETE_SIZES))
    if mode == "dict":
        keys: dict[str, spaces.Space[Any]] = {key: spaces.Discrete(2) for key in DICT_KEYS}
        return spaces.Dict({**keys, "camera": spaces.Box(-180.0, 180.0, (2,), np.float32)})
    if mode == "vector":
        low, high = np.zeros(ACTION_DIM, np.float32), np.ones(ACTION_DIM, np.float32)
        low[list(CAMERA_ENTRIES)], high[list(CAMERA_ENTRIES)] = -MAX_CAMERA_STEPS, MAX_CAMERA_STEPS
        return spaces.Box(low, high, dtype=np.float32)
    if mode == "pose":
        return spaces.Box(_POSE_LOW, _POSE_HIGH, dtype=np.float64)
    raise ValueError(f"unknown action_mode {mode!r}: expected one of {', '.join(ACTION_MODES)}")


def action_to_vector(mode: str, action: Any) -> NDArray[np.float32]:
    """Turn an action of any mode but `pose` into a 25-vector.

    Raises:
        ValueError: The action lies outside the mode's space; what is wrong is named.
    """
    if mode == "discrete":
        index = np.asarray(action)
        if index.size != 1 or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"action {action!r}: expected one integer from 0 to {len(DISCRETE_ACTIONS) - 1}")
        return discrete_to_vector(int(index.reshape(())))
    if mode == "multidiscrete":
        return multidiscrete_to_vector(action)
    if mode == "dict":
        if not isinstance(action, dict):
            raise ValueError(
                f"action is a {type(action).__name__}: expected a dict of keys and camera (see action_space)"
            )
        return dict_to_vector(action)
    vector = validate_vector(action)
    if vector.shape != (ACTION_DIM,):
        raise ValueError(f"action has shape {vector.shape}: expected [{ACTION_DIM}]")
    return vector


def action_to_pose(action: Any) -> NDArray[np.float64]:
    """Check an action of mode `pose`, float64 [5]; yaw is wrapped.

    Raises:
        ValueError: Wrong shape, NaN, or a pitch beyond 90 degrees.
    """
    pose = validate_poses(action, "action").copy()
    if pose.shape != (5,):
        raise ValueError(f"action has shape {pose.shape}: expected [5] = x, y, z (blocks), pitch, yaw (degrees)")
    if abs(pose[3]) > 90:
        raise ValueError(f"action: pitch {pose[3]:g} is out of range, expected -90 (up) to 90 degrees (down)")
    pose[4] = wrap_degrees(pose[4])
    return pose


def observation_space(mode: str, height: int, width: int) -> spaces.Space[Any]:
    """Space of one of `OBS_MODES`.

    Args:
        mode: `frame` (uint8 [H, W, 3]), `frame_pose` (adds `pose`, float64 [5]) or `frame_goal` (adds `goal`, float32
            [3] = distance / 20 blocks (at most 4), sine and cosine of the bearing; right is positive).
        height: Pixels.
        width: Pixels.

    Returns:
        The space.

    Raises:
        ValueError: Unknown mode.
    """
    frame = spaces.Box(0, 255, (height, width, 3), np.uint8)
    if mode == "frame":
        return frame
    if mode == "frame_pose":
        return spaces.Dict({"frame": frame, "pose": spaces.Box(-_FURTHEST, _FURTHEST, dtype=np.float64)})
    if mode == "frame_goal":
        return spaces.Dict({"frame": frame, "goal": spaces.Box(GOAL_LOW, GOAL_HIGH, dtype=np.float32)})
    raise ValueError(f"unknown obs_mode {mode!r}: expected one of {', '.join(OBS_MODES)}")


def resize_frame(frame: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A fresh copy of a frame, averaged over areas to `size` = (height, width) if that differs.

    Args:
        frame: uint8 [H, W, 3].
        size: Wanted height and width, or None.

    Returns:
        uint8 [height, width, 3], never sharing memory with the input.
    """
    if size is None or frame.shape[:2] == size:
        return frame.copy()
    planes = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.adaptive_avg_pool2d(planes, size)
    return small[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
