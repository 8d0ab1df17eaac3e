"""Ways to begin a rollout: a voxel world, a clip, one image. Each gives true frames with actions and poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .conventions.actions import noop, parse_action_string
from .conventions.poses import integrate_kinematic
from .scene import LOOK_AROUND, Scene


@dataclass(frozen=True, eq=False)
class Beginning:
    """What the model observes, and the poses of what comes next.

    Attributes:
        frames: uint8 [C, H, W, 3].
        actions: float32 [C, 25].
        poses: float64 [C, 5].
        next_poses: float64 [T, 5], poses that the generated frames will have.
        pose_source: `truth` (physics of the voxel world) or `kinematic` (dead reckoning through walls).
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    next_poses: NDArray[np.float64]
    pose_source: str


def from_world(seed: int, actions: NDArray[np.float32], height: int, width: int) -> Beginning:
    """Look around once at the spawn of a voxel world (25 true frames), then follow the actions."""
    scene = Scene(seed, height, width)
    look = np.concatenate([noop()[None], parse_action_string(LOOK_AROUND)])
    both = np.concatenate([look, actions])
    poses = scene.walk(both)
    truth = scene.film(look, poses[: len(look)])
    return Beginning(truth.frames, look, truth.poses, poses[len(look) :], "truth")


def from_clip(path: str | Path, actions: NDArray[np.float32], height: int, width: int) -> Beginning:
    """Observe a whole clip (mp4 + npz), then follow the actions by dead reckoning."""
    from .conventions.clips import read_clip

    clip = read_clip(Path(path))
    frames = fit_frames(clip.frames, height, width)
    return Beginning(frames, clip.actions, clip.poses, reckon(clip.poses[-1], actions), "kinematic")


def from_image(path: str | Path, actions: NDArray[np.float32], height: int, width: int) -> Beginning:
    """Observe one image at pose 0, then follow the actions by dead reckoning.

    Raises:
        ValueError: The file is no readable image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            frame = np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no readable image: give a PNG or JPEG") from None
    pose = np.zeros((1, 5))
    return Beginning(fit_frames(frame[None], height, width), noop()[None], pose, reckon(pose[0], actions), "kinematic")


def reckon(pose: NDArray[np.float64], actions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Poses after each action by dead reckoning, float64 [T, 5]."""
    poses = []
    for action in actions:
        pose = integrate_kinematic(pose, action)
        poses.append(pose)
    return np.stack(poses)


def fit_frames(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bring frames to the model's size: cut the sides to its aspect (square pixels stay square), then resize.

    Args:
        frames: uint8 [T, H, W, 3].
        height: Wanted height.
        width: Wanted width.

    Returns:
        uint8 [T, height, width, 3].
    """
    if frames.shape[1:3] == (height, width):
        return frames
    tall, wide = frames.shape[1:3]
    cut_w = min(wide, round(tall * width / height))
    cut_h = min(tall, round(cut_w * height / width))
    top, left = (tall - cut_h) // 2, (wide - cut_w) // 2
    cut = torch.from_numpy(np.ascontiguousarray(frames[:, top : top + cut_h, left : left + cut_w]))
    resized = torch.nn.functional.interpolate(
        cut.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
