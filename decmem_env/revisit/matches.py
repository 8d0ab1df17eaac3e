"""Which generated frames are revisits, of what, and after how long.

Measures, "Revisit": a frame is **exact**, **near** or **new** by its pose against the context and the earlier rollout
frames, and its **gap** is the number of frames since the last one whose pose is exact or near. A player moves in steps
smaller than the near thresholds, so the frames just before are always near: the unbroken run of near frames that leads
up to a frame is its *approach* and does not count as a memory of it. Without that every gap would be 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..conventions.poses import EXACT_ANGLE, EXACT_DISTANCE, NEAR_ANGLE, NEAR_DISTANCE, validate_poses, wrap_degrees

NEW, NEAR, EXACT = 0, 1, 2
CLASS_NAMES = ("new", "near", "exact")

GATE_ANGLE, GATE_DISTANCE, GATE_SHARE = 45.0, 4.0, 0.75


@dataclass(frozen=True)
class Matches:
    """Revisits of one trajectory of T frames; entries before the context's end are 0 / -1 / False.

    Attributes:
        label: int8 [T], `NEW`, `NEAR` or `EXACT`.
        gap: int32 [T], frames since the last near frame before the approach; 0 for new frames.
        last: int32 [T], index of that frame, -1 for new frames.
        remembered: int32 [T], the earlier frame with the nearest pose (the latest of equals), -1 for new frames.
        in_context: bool [T], the label holds against the context alone (else only a generated frame was seen there).
        left: bool [T], at least 75 % of the frames between lie more than 45 degrees or 4 blocks away.
        away: bool [T, T], row t: the frames between `last[t]` and t that lie that far away.
        nearest: int32 [T], context frame with the nearest pose.
    """

    label: NDArray[np.int8]
    gap: NDArray[np.int32]
    last: NDArray[np.int32]
    remembered: NDArray[np.int32]
    in_context: NDArray[np.bool_]
    left: NDArray[np.bool_]
    away: NDArray[np.bool_]
    nearest: NDArray[np.int32]


def match_poses(poses: NDArray[np.float64], context: int) -> Matches:
    """Classify the generated frames of one trajectory.

    Args:
        poses: [T, 5], blocks and degrees.
        context: Number of true frames at the start, 1 to T.

    Returns:
        The matches.

    Raises:
        ValueError: Bad poses or context length.
    """
    array = validate_poses(poses)
    total = len(array)
    if array.ndim != 2 or not 1 <= context <= total:
        raise ValueError(f"poses {array.shape} with a context of {context}: expected [T, 5] and 1 <= context <= T")
    distance = np.linalg.norm(array[:, None, :3] - array[None, :, :3], axis=-1)
    angle = np.abs(wrap_degrees(array[:, None, 3:] - array[None, :, 3:])).max(-1)
    exact = (distance <= EXACT_DISTANCE) & (angle <= EXACT_ANGLE)
    near = (distance <= NEAR_DISTANCE) & (angle <= NEAR_ANGLE)
    cost = (distance / NEAR_DISTANCE) ** 2 + (angle / NEAR_ANGLE) ** 2
    far = (angle > GATE_ANGLE) | (distance > GATE_DISTANCE)

    label = np.zeros(total, np.int8)
    gap = np.zeros(total, np.int32)
    last_seen = np.full(total, -1, np.int32)
    remembered = np.full(total, -1, np.int32)
    in_context = np.zeros(total, bool)
    left = np.zeros(total, bool)
    away = np.zeros((total, total), bool)
    for t in range(context, total):
        apart = np.flatnonzero(~near[t, :t])
        before = int(apart[-1]) if len(apart) else 0  # frames from before+1 to t-1 are the approach
        matches = np.flatnonzero(near[t, :before])
        if not len(matches):
            continue
        last = int(matches[-1])
        label[t] = EXACT if exact[t, :before].any() else NEAR
        gap[t], last_seen[t] = t - last, last
        remembered[t] = matches[::-1][cost[t, matches[::-1]].round(6).argmin()]
        seen = (exact if label[t] == EXACT else near)[t, : min(before, context)]
        in_context[t] = seen.any()
        away[t, last + 1 : t] = far[t, last + 1 : t]
        left[t] = away[t, last + 1 : t].mean() >= GATE_SHARE
    nearest = cost[:, :context].argmin(1).astype(np.int32)
    return Matches(label, gap, last_seen, remembered, in_context, left, away, nearest)


def in_gap(gap: NDArray[np.int32], frames: int) -> NDArray[np.bool_]:
    """Frames that belong to a "G-frame" figure: gap in [G, 1.25 G]."""
    return (gap >= frames) & (gap <= 1.25 * frames)
