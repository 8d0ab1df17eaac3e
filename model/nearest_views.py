"""Which remembered frames a frame sees where a seen view lies beside it (`nearest_views`): the nearest ones.

Retrieval by content (`attention.retrieve`) has every block of the past compete with every other. Where a player has
walked for minutes, hundreds of frames show about the same, and the few that show a place best are drowned: asked for
the very pose of one of 395 remembered frames, the tenth weights made a frame of 13 dB, and one of 29.6 dB when they
remembered that frame and eight others only (docs/results/tiny-labbook.md). The agent's own pose says which frames are
near, at a cost that hardly grows (WorldMem, arXiv 2504.12369, retrieves frames by pose too).

Frames that show the same as a nearer one add nothing and are passed over. Only seen frames serve, and only those since
the last change nearby: everywhere else, window and retrieval by content find what is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BY_PLACE = ("memory", "every")  # modes in which `nearest_views` counts
_BLOCKS, _DEGREES = 2.0, 17.0  # as far apart as that, two views count as 1 apart
_ALIKE = 0.15  # apart; nearer ones show the same


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
