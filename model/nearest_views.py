"""Which remembered frames a frame sees where a seen view lies beside it (`nearest_views`): the nearest ones.

Retrieval by content (`attention.retrieve`) has every block of the past compete with every other. Where a player has
walked for minutes, hundreds of frames show about the same, and the few that show a place best are drowned: with 395
frames in memory, one of them taken at the very pose that was asked for, the bundled model came within 13 dB of it, and
within 29 dB if it saw only the eight nearest ones (docs/results/tiny-labbook.md). The agent's own pose says which
frames those are, at a cost that hardly grows (WorldMem, arXiv 2504.12369, retrieves frames by pose too).

Frames that show the same as a nearer one add nothing and are passed over. Only seen frames serve, and only those since
the last change nearby: everywhere else, window and retrieval by content find what is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..conventions.actions import ACTION_DIM
from .voxel_rays import HANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .memory import MemoryBank

CHANGED_WITHIN = 16.0  # blocks around a hand's work in which a change to one block can be seen
BY_PLACE = ("memory", "every")  # modes in which `nearest_views` counts
_BLOCKS, _DEGREES = 2.0, 17.0  # as far apart as that, two views count as 1 apart
_ALIKE = 0.15  # apart; nearer ones show the same


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


def apart(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far views lie apart: poses [..., 5] and [..., 5] to [...]; 1 at two blocks or 17 degrees."""
    # Column by column: numpy reduces short axes slowly, and every step asks this of every remembered frame.
    x, y, z, pitch, yaw = np.moveaxis(first - second, -1, 0)
    pitch, yaw = np.abs(pitch), np.abs(yaw) % 360.0
    turned = np.maximum(pitch, np.minimum(yaw, 360.0 - yaw)) / _DEGREES
    return np.asarray(np.sqrt((x * x + y * y + z * z) / _BLOCKS**2 + turned * turned))


def nearest(poses: NDArray[np.float64], pose: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The nearest of some views that do not show the same.

    Args:
        poses: float64 [n, 5], in order of time; of equals, the latest is taken.
        pose: float64 [5].
        count: Most views to take.

    Returns:
        int64 [m], at most `count`, ascending; fewer where all others show the same as these.
    """
    far = apart(poses, pose)[::-1].copy()
    chosen: list[int] = []
    while len(far):
        best = len(far) - 1 - int(far.argmin())
        if far[-1 - best] == np.inf:
            break
        chosen.append(best)
        if len(chosen) == count:
            break
        far[(apart(poses, poses[best]) < _ALIKE)[::-1]] = np.inf
    return np.sort(np.array(chosen, np.int64))
