"""Where hands have been at work: what was seen of a place before it changed is out of date, unless the change is told.

A world of blocks changes cell by cell, and whoever knows which cell a hand met (`voxel_hands`) can tell every later
frame where it stands (`voxel_changes`). Then what was seen before still serves for all that did not change, and a hole
is looked for where it is, from whatever side the player comes back.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM, Action
from ..conventions.poses import EYE_HEIGHT, look_vector
from .voxel_rays import HANDS


class Remembered(Protocol):
    """Views in order of time: a `MemoryBank`, or `nearest_views.Views`."""

    @property
    def poses(self) -> NDArray[np.float64]:
        """[n, 5]."""

    @property
    def hands(self) -> NDArray[np.bool_]:
        """[n], which of them show a hand's work for the first time."""

    @property
    def generated(self) -> NDArray[np.bool_]:
        """[n], which of them the model made."""

    @property
    def changes(self) -> NDArray[np.float64]:
        """[n, 4], what the hands changed (`made_changes`)."""


CHANGED_WITHIN = 16.0  # blocks around a hand's work in which a change to one block can be seen
TOLD = 8  # changes that a frame is told of, at most


def _pressed(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which latent frames press what: bool [n, frames of a latent, 25] of actions [n, A]."""
    return actions.reshape(len(actions), -1, ACTION_DIM) > 0.5


def hands_used(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which latent frames break or place something: bool [n] of actions [n, A] (those of all frames of a latent)."""
    return np.asarray(_pressed(actions)[..., HANDS].any((1, 2)))


def changes_near(views: Remembered, pose: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the views that show a hand's work which a pose [5] may see, ascending int64 [m]."""
    hands = np.flatnonzero(views.hands)
    away = views.poses[hands, :3] - pose[:3]
    return hands[(away * away).sum(1) <= CHANGED_WITHIN**2]


def since(changes: NDArray[np.int64]) -> int:
    """Place of the first view since the last of some changes, the one that shows it first; 0 without changes."""
    return int(changes[-1]) if len(changes) else 0


def made_changes(
    actions: NDArray[np.float32], poses: NDArray[np.float64], cells: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What hands change in frames.

    Args:
        actions: float32 [n, A].
        poses: float64 [n, 5].
        cells: float64 [n, 3], the cell (x, y, z) that the hand breaks or fills; NaN where that is not known.

    Returns:
        float64 [n, 4], rows (x, y, z, kind), NaN where no change is known. The kind is 1 for a cell that is filled, and
        -1, -2 or -3 for one that is emptied through a face across the first, second or third axis.
    """
    made = np.full((len(cells), 4), np.nan)
    for i in np.flatnonzero(~np.isnan(cells[:, 0])):
        made[i, :3] = cells[i]
        if _pressed(actions[i : i + 1])[..., Action.ATTACK].any():
            forward = look_vector(poses[i])
            forward = np.where(np.abs(forward) < 1e-6, 1e-6, forward)
            low = cells[i] - poses[i, :3] - [0.0, EYE_HEIGHT, 0.0]
            made[i, 3] = -1.0 - np.minimum(low / forward, (low + 1.0) / forward).argmax()
        else:
            made[i, 3] = 1.0
    return made


def told_changes(changes: NDArray[np.float64], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The changes that a frame is told of: the nearest to its eye, of those that lie before it.

    Args:
        changes: float64 [n, 4], in order of time, as `made_changes` gives them; of one cell, the last counts.
        pose: float64 [5].

    Returns:
        float64 [TOLD, 4], NaN where there are fewer.
    """
    told = np.full((TOLD, 4), np.nan)
    last = {tuple(row[:3]): row for row in changes.tolist() if row[0] == row[0]}  # not NaN
    if last:
        known = np.array(list(last.values()))
        away = known[:, :3] + 0.5 - pose[:3] - [0.0, EYE_HEIGHT, 0.0]
        distance = np.sqrt((away * away).sum(1))
        seen = np.flatnonzero((distance <= CHANGED_WITHIN) & (away @ look_vector(pose) > 0.0))
        order = seen[np.argsort(distance[seen], kind="stable")[:TOLD]]
        told[: len(order)] = known[order]
    return told


def told_on_walk(
    made: NDArray[np.float64], poses: NDArray[np.float64], later: bool, before: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The changes that each frame of a walk is told of.

    Args:
        made: float64 [T, 4], by frame.
        poses: float64 [T, 5].
        later: Whether frames are told of those before them, too (`voxel_changes`), or of their own alone.
        before: float64 [n, 4], changes before the walk; None: none.

    Returns:
        float64 [T, TOLD, 4], or [T, 1, 4] of their own alone.
    """
    if not later:
        return made[:, None]
    every = made if before is None or not len(before) else np.concatenate([before, made])
    if np.isnan(every[:, 0]).all():
        return np.full((len(poses), TOLD, 4), np.nan)
    first = len(every) - len(made) + 1
    return np.stack([told_changes(every[: first + t], pose) for t, pose in enumerate(poses)])
