"""Which remembered frames a frame sees where memory is anchored by place (`nearest_views`): the nearest ones.

Retrieval by content (`attention.retrieve`) has every block of the past compete with every other. Where a player has
walked for minutes, hundreds of frames show about the same, and the few that show a place best are drowned: with 395
frames in memory, one of them taken at the very pose that was asked for, the bundled model came within 13 dB of it, and
within 29 dB if it saw only the eight nearest ones (docs/results/tiny-labbook.md). The agent's own pose says which
frames those are, at a cost that does not grow (WorldMem, arXiv 2504.12369, retrieves frames by pose too).

A frame that shows the same as one that is nearer adds nothing, so it is passed over. What was dreamed counts as farther
away than what was seen, and, after a hand's work nearby, what came before it as farther still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM
from ..conventions.poses import wrap_degrees
from .voxel_rays import HANDS

if TYPE_CHECKING:
    from .memory import MemoryBank
    from .session import Pending, Session

CHANGED_WITHIN = 16.0  # blocks around a hand's work in which a change to one block can be seen
_BLOCKS, _DEGREES = 2.0, 17.0  # as far apart as that, two views count as 1 apart
_ALIKE = 0.15  # apart; nearer ones show the same
_DREAMED = 0.7  # added for frames that the model made
_OUTDATED = 1.7  # added for each change nearby since
_LATER = 1e-6  # taken off for each frame: of equals, the latest


def apart(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far views lie apart: poses [..., 5] and [..., 5] to [...]; 1 at two blocks or 17 degrees."""
    offsets = first - second
    away = np.square(offsets[..., :3]).sum(-1) / _BLOCKS**2
    turned = np.abs(wrap_degrees(offsets[..., 3:])).max(-1) / _DEGREES
    return np.asarray(np.sqrt(away + np.square(turned)))


def hands_used(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which latent frames break or place something: bool [n] of actions [n, A] (those of all frames of a latent)."""
    pressed: NDArray[np.bool_] = actions.reshape(len(actions), -1, ACTION_DIM)[..., HANDS] > 0.5
    return np.logical_or.reduce(pressed, (1, 2))


class Views(NamedTuple):
    """Frames in order of time.

    Attributes:
        poses: float64 [n, 5].
        hands: bool [n], which of them show a hand's work for the first time.
        generated: bool [n], which of them the model made.
    """

    poses: NDArray[np.float64]
    hands: NDArray[np.bool_]
    generated: NDArray[np.bool_]

    def followed_by(self, later: Views) -> Views:
        """These, then those."""
        parts = (np.concatenate(pair) for pair in zip(self, later, strict=True))
        return Views(*parts)  # type: ignore[arg-type]

    def before(self, count: int) -> Views:
        """The first so many."""
        return Views(self.poses[:count], self.hands[:count], self.generated[:count])


def _set_back(views: Views, pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much views count as farther from a pose than they are, or nearer (of equals, the latest): [n]."""
    back = np.asarray(_DREAMED * views.generated - _LATER * np.arange(len(views.hands)))
    if views.hands.any():
        near = views.hands & (np.square(views.poses[:, :3] - pose[:3]).sum(-1) <= CHANGED_WITHIN**2)
        back += _OUTDATED * (near[::-1].cumsum()[::-1] - near)
    return back


def nearest(views: Views, pose: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The frames that a frame sees.

    Args:
        views: The frames before it.
        pose: float64 [5], its own.
        count: Most frames to see.

    Returns:
        int64 [m], at most `count`, ascending; fewer where the others show the same as these.
    """
    poses, hands = views.poses, views.hands
    far = apart(poses, pose) + _set_back(views, pose)
    changes = hands.cumsum() if hands.any() else None
    chosen: list[int] = []
    while len(chosen) < count and len(poses):
        best = int(far.argmin())
        if far[best] == np.inf:
            break
        chosen.append(best)
        alike = apart(poses, poses[best]) < _ALIKE
        if changes is not None:  # what came before a change is no substitute for what came after it, nor vice versa
            alike &= changes == changes[best]
        far[alike] = np.inf
    return np.sort(np.array(chosen, np.int64))


def nearest_of_walk(
    views: Views, count: int, kept: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """What every frame of a walk sees of those before it.

    Args:
        views: T frames.
        count: Most frames to see.
        kept: bool [T], frames that are remembered at all; None: all are.

    Returns:
        Frames int32 [T, count], the nearest first, and how many of them count, int32 [T].
    """
    total = len(views.poses)
    between = apart(views.poses[:, None], views.poses[None])
    far = np.full((total, total), np.inf)
    for t in range(total):
        far[t, :t] = between[t, :t] + _set_back(views.before(t), views.poses[t])
    if kept is not None:
        far[:, ~kept] = np.inf
    changes = views.hands.cumsum()
    alike = (between < _ALIKE) & (changes[:, None] == changes)
    rows, lists, counts = np.arange(total), np.zeros((total, count), np.int32), np.zeros(total, np.int32)
    for number in range(count):
        best = far.argmin(1)
        found = np.isfinite(far[rows, best])
        lists[found, number] = best[found]
        counts += found
        far[alike[best] & found[:, None]] = np.inf
        far[rows, best] = np.inf
    return lists, counts


BY_PLACE = ("memory", "every")  # modes in which a model with `nearest_views` chooses what a frame sees by its pose


def chosen_by_place(session: Session) -> bool:
    """Whether a session's frames see the nearest views."""
    return session.model.config.nearest_views > 0 and session.settings.memory in BY_PLACE


def views_of(frames: MemoryBank | Pending) -> Views:
    """What is remembered, or frames about to be."""
    used = frames.hands if hasattr(frames, "hands") else hands_used(frames.actions)
    return Views(frames.poses, used, frames.generated)


def seen_when_committed(bank: MemoryBank, frames: Views, count: int) -> list[NDArray[np.int64]]:
    """What frames see when they enter a memory, one after the other.

    Args:
        bank: What it holds.
        frames: Those to enter.
        count: Most frames to see.

    Returns:
        Places int64 in the history that the frames are appended to, for each of them.
    """
    known, before = views_of(bank).followed_by(frames), len(bank)
    return [nearest(known.before(before + i), pose, count) for i, pose in enumerate(frames.poses)]
