"""Which remembered frames a frame sees where a seen view lies near it (`nearest_views`): the nearest ones.

Retrieval by content (`attention.retrieve`) has every block of the past compete with every other. Where a player has
walked for minutes, hundreds of frames show about the same, and the few that show a place best are drowned: asked for
the very pose of one of 395 remembered frames, the tenth weights made a frame of 13 dB, and one of 29.6 dB when they
remembered that frame and eight others only (docs/results/tiny-labbook.md). The agent's own pose says which frames are
near, at a cost that hardly grows (WorldMem, arXiv 2504.12369, retrieves frames by pose too).

Frames that show the same as a nearer one add nothing and are passed over. Only seen frames serve, and only those since
the last change nearby, unless the changes are told (`voxel_changes`): then a dreamed frame that shows them joins the
seen ones. Everywhere else, window and retrieval by content find what is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import native_views
from .changes import CHANGED_WITHIN, Remembered, changes_near, hands_used, made_changes, since
from .config import ModelConfig
from .keyframes import within
from .native_views import Distances

BY_PLACE = ("memory", "every")  # modes in which `nearest_views` counts
NEAR_BLOCKS, NEAR_DEGREES = 8.0, 20.0  # of a seen view, within which a frame goes by place
DREAMED_BLOCKS = 2.0  # of a dreamed view, within which it may show a change
_BLOCKS, _DEGREES = 2.0, 17.0  # as far apart as that, two views count as 1 apart
_ALIKE = 0.15  # apart; nearer ones show the same
_DISTANCES = Distances(NEAR_BLOCKS, DREAMED_BLOCKS, NEAR_DEGREES, CHANGED_WITHIN, _BLOCKS, _DEGREES, _ALIKE)


class Views(NamedTuple):
    """Frames in order of time, `changes.Remembered`."""

    poses: NDArray[np.float64]
    hands: NDArray[np.bool_]
    generated: NDArray[np.bool_]
    changes: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        poses: NDArray[np.float64],
        actions: NDArray[np.float32],
        generated: NDArray[np.bool_],
        cells: NDArray[np.float64],
    ) -> Views:
        """Frames with poses [n, 5], actions [n, A] and told cells [n, 3]."""
        return cls(poses, hands_used(actions), generated, made_changes(actions, poses, cells))

    def after(self, before: Remembered) -> Views:
        """Those and then these."""
        pairs = zip((before.poses, before.hands, before.generated, before.changes), self, strict=True)
        return Views(*(np.concatenate(pair) for pair in pairs))  # type: ignore[arg-type]

    def at(self, places: NDArray[np.int64] | slice) -> Views:
        """Some of them."""
        return Views(self.poses[places], self.hands[places], self.generated[places], self.changes[places])

    def first(self, count: int) -> Views:
        """The first so many."""
        return self.at(slice(count))


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


def seen_from(views: Remembered, pose: NDArray[np.float64], config: ModelConfig) -> NDArray[np.int64] | None:
    """The views that a frame sees, if it goes by place.

    Args:
        views: Those before it.
        pose: float64 [5], its own.
        config: `nearest_views` and `voxel_changes`.

    Returns:
        Places int64 [m], ascending; None, where no seen view lies near: the window, and what is retrieved by content.
    """
    native = native_views.load()
    if native is not None:
        return native.seen_from(views, pose, config.nearest_views, config.voxel_changes, _DISTANCES)
    return seen_from_naive(views, pose, config)


def seen_from_naive(views: Remembered, pose: NDArray[np.float64], config: ModelConfig) -> NDArray[np.int64] | None:
    """`seen_from` in NumPy."""
    seen = ~views.generated
    near = within(views.poses, pose, NEAR_BLOCKS, NEAR_DEGREES)
    if not (near & seen).any():
        return None
    changed = changes_near(views, pose)
    late = since(changed)
    fresh = bool((near & seen)[late:].any())
    if not fresh and (not config.voxel_changes or np.isnan(views.changes[changed, 0]).any()):
        return None  # all that was seen is out of date
    first = late if fresh else 0
    places = np.flatnonzero(seen[first:]) + first
    chosen = places[nearest(views.poses[places], pose, config.nearest_views)]
    if not fresh:  # a dreamed view shows what the change looks like
        beside = within(views.poses[late:], pose, DREAMED_BLOCKS, NEAR_DEGREES)
        dreamed = np.flatnonzero(beside & ~seen[late:]) + late
        chosen = np.append(chosen, dreamed[nearest(views.poses[dreamed], pose, 1)])
    return np.sort(chosen)


def seen_from_afar(
    views: Views, pose: NDArray[np.float64], config: ModelConfig, least: float
) -> NDArray[np.int64] | None:
    """`seen_from` among the views that lie at least so far from a pose (`apart`)."""
    places = np.flatnonzero(apart(views.poses, pose) >= least)
    chosen = seen_from(views.at(places), pose, config)
    return None if chosen is None else places[chosen]


def seen_on_walk(
    views: Views, config: ModelConfig, hidden: NDArray[np.float64] | None = None
) -> list[NDArray[np.int64] | None]:
    """What each of the frames of a walk sees of those before it, if all are remembered: `seen_from` each.

    Args:
        views: The walk's T frames.
        config: `nearest_views` and `voxel_changes`.
        hidden: float64 [T], how near views are that a frame does not get to see (`apart`), where others are left that
            serve; None or 0: no view is hidden.
    """
    found = []
    for t, pose in enumerate(views.poses):
        before, chosen = views.first(t), None
        if hidden is not None and hidden[t] > 0.0:
            chosen = seen_from_afar(before, pose, config, hidden[t])
        found.append(seen_from(before, pose, config) if chosen is None else chosen)
    return found
