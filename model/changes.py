"""Where hands have been at work: what was seen of a place before it changed is out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..conventions.actions import ACTION_DIM
from .voxel_rays import HANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .memory import MemoryBank

CHANGED_WITHIN = 16.0  # blocks around a hand's work in which a change to one block can be seen


def hands_used(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which latent frames break or place something: bool [n] of actions [n, A] (those of all frames of a latent)."""
    pressed: NDArray[np.bool_] = actions.reshape(len(actions), -1, ACTION_DIM)[..., HANDS] > 0.5
    return np.logical_or.reduce(pressed, (1, 2))


def changes_near(poses: NDArray[np.float64], hands: NDArray[np.bool_], pose: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of some frames, poses [n, 5] and hands at work [n], change what a pose [5] may see: bool [n]."""
    away = poses[:, :3] - pose[:3]
    return np.asarray(hands & ((away * away).sum(1) <= CHANGED_WITHIN**2))


def since_change(bank: MemoryBank, pose: NDArray[np.float64]) -> int:
    """Index of the first frame since the last change near a pose, the one that shows it first; 0 without changes."""
    if bank.hands.any():
        changes = bank.frame_index[changes_near(bank.poses, bank.hands, pose)]
        if len(changes):
            return int(changes[-1])
    return 0
