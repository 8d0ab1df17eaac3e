"""Where hands have been at work: what was seen of a place before it changed is out of date, unless the change is told.

A world of blocks changes cell by cell, and whoever knows which cell a hand met (`voxel_hands`) can tell every later
frame where it stands (`voxel_changes`). Then what was seen before still serves for all that did not change, and a hole
is looked for where it is, from whatever side the player comes back.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM, Action
from ..conventions.poses import EYE_HEIGHT, look_vector
from . import native_views
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
_EYE = np.array([0.0, EYE_HEIGHT, 0.0])  # from the feet


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


def since_change(views: Remembered, pose: NDArray[np.float64]) -> int:
    """Place of the first view since the last change that a pose may see, the one that shows it; 0 without changes."""
    native = native_views.load()
    if native is not None:
        return native.since(views.poses, views.hands, pose, CHANGED_WITHIN)
    return since(changes_near(views, pose))


def since(changes: NDArray[np.int64]) -> int:
    """`since_change`, from the changes near."""
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
    known = cells[:, 0] == cells[:, 0]  # not NaN
    if not known.any():
        return made
    for i in np.flatnonzero(known):
        made[i, :3] = cells[i]
        if _pressed(actions[i : i + 1])[..., Action.ATTACK].any():
            forward = look_vector(poses[i])
            forward = np.where(np.abs(forward) < 1e-6, 1e-6, forward)
            low = cells[i] - poses[i, :3] - [0.0, EYE_HEIGHT, 0.0]
            made[i, 3] = -1.0 - np.minimum(low / forward, (low + 1.0) / forward).argmax()
        else:
            made[i, 3] = 1.0
    return made


def latest(changes: NDArray[np.float64]) -> NDArray[np.float64]:
    """What changes [n, 4], in order of time, come to: of one cell the last counts, of unknown ones none; [m, 4]."""
    last = {tuple(row[:3]): row for row in changes.tolist() if row[0] == row[0]}  # not NaN
    return np.array(list(last.values())).reshape(-1, 4)


def told_changes(changes: NDArray[np.float64], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The changes that a frame is told of: the nearest to its eye, of those that lie before it.

    Args:
        changes: float64 [m, 4], of `latest`.
        pose: float64 [5].

    Returns:
        float64 [TOLD, 4], NaN where there are fewer.
    """
    if not len(changes):
        return np.full((TOLD, 4), np.nan)
    eye, look = pose[:3] + _EYE, _ahead(pose)
    native = native_views.load()
    if native is not None:
        return native.told_changes(changes, eye, look, CHANGED_WITHIN, TOLD)
    told = np.full((TOLD, 4), np.nan)
    x, y, z = (changes[:, :3] + 0.5 - eye).T
    distance = np.sqrt(x * x + y * y + z * z)
    seen = np.flatnonzero((distance <= CHANGED_WITHIN) & (x * look[0] + y * look[1] + z * look[2] > 0.0))
    order = seen[np.argsort(distance[seen], kind="stable")[:TOLD]]
    told[: len(order)] = changes[order]
    return told


def _ahead(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """`look_vector` of one pose [5]; NumPy takes ten times as long for one."""
    pitch, yaw = math.radians(pose[3]), math.radians(pose[4])
    return np.array([-math.sin(yaw) * math.cos(pitch), -math.sin(pitch), math.cos(yaw) * math.cos(pitch)])


def told_on_walk(
    made: NDArray[np.float64], poses: NDArray[np.float64], later: bool, before: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The changes that each frame of a walk is told of.

    Args:
        made: float64 [T, 4], by frame.
        poses: float64 [T, 5].
        later: Whether frames are told of those before them, too (`voxel_changes`), or of their own alone.
        before: float64 [n, 4], changes before the walk, of `latest`; None: none.

    Returns:
        float64 [T, TOLD, 4], or [T, 1, 4] of their own alone.
    """
    if not later:
        return made[:, None]
    known = np.zeros((0, 4)) if before is None else before
    told = np.empty((len(poses), TOLD, 4))
    for t, pose in enumerate(poses):
        if made[t, 0] == made[t, 0]:  # not NaN
            known = latest(np.concatenate([known, made[t : t + 1]]))
        told[t] = told_changes(known, pose)
    return told
