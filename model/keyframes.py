"""Which generated frames memory keeps: those that show what it does not hold yet.

A model that remembers every frame it makes soon remembers mostly its own, and believes them: each copy of a place is
made from copies, the nearest of which is the frame before. Mapping by camera (visual SLAM) keeps keyframes instead, one
for each view that is new, and so does this: a generated frame beside a remembered view is shown and forgotten. Known
places then stay as near to what was seen as a single step brings them, steps there need no commit, and memory grows
with the ground covered instead of with time.

Where hands have been at work nothing that was seen before covers anything: all frames from there on are kept until
those after the change cover the views around it.

A frame without a remembered view beside it must be imagined in part. One sampler step gives the mean of all that it
could show, which is none of it, so such frames get several (`new_view_steps`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..conventions.poses import wrap_degrees
from . import native_views
from .changes import since_change
from .config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .memory import MemoryBank
    from .session import Pending, Session

FORGETTING = ("memory", "content", "dense", "decay")  # modes that see all of the past, so keyframes of it do


def keeps(session: Session) -> bool:
    """Whether a session's newest chunk is to enter its memory; False where it has none."""
    if session.pending is None:
        return False
    if session.settings.memory not in FORGETTING:
        return True
    return not covered(session.bank, session.pending, session.model.config)


def covered(bank: MemoryBank, frames: Pending, config: ModelConfig) -> bool:
    """Whether memory can do without a chunk that the model generated.

    Args:
        bank: What is remembered.
        frames: The chunk.
        config: `keyframe_blocks` and `keyframe_degrees`; 0 blocks: every frame is kept.

    Returns:
        True if each of its frames has a remembered view within both distances, made since the last change nearby.
    """
    if not config.keyframe_blocks or not frames.generated.all() or frames.hands.any():
        return False
    return all(_view_known(bank, pose, config) for pose in frames.poses)


def _view_known(bank: MemoryBank, pose: NDArray[np.float64], config: ModelConfig) -> bool:
    return any_beside(bank.poses, pose, config, since_change(bank, pose))


def any_beside(views: NDArray[np.float64], pose: NDArray[np.float64], config: ModelConfig, first: int = 0) -> bool:
    """Whether `beside` holds of any of the views from `first` on."""
    native = native_views.load()
    if native is not None:
        return native.any_within(views, pose, config.keyframe_blocks, config.keyframe_degrees, first)
    return bool(beside(views[first:], pose, config).any())


def beside(views: NDArray[np.float64], pose: NDArray[np.float64], config: ModelConfig) -> NDArray[np.bool_]:
    """Which of some views [n, 5] lie within the keyframes' distances of a pose [5]: bool [n]."""
    return within(views, pose, config.keyframe_blocks, config.keyframe_degrees)


def within(views: NDArray[np.float64], pose: NDArray[np.float64], blocks: float, degrees: float) -> NDArray[np.bool_]:
    """Which of some views [n, 5] lie within so many blocks and degrees of a pose [5]: bool [n]."""
    offsets = views - pose
    x, y, z = offsets[:, 0], offsets[:, 1], offsets[:, 2]
    near: NDArray[np.bool_] = x * x + y * y + z * z <= blocks**2
    turned = np.abs(wrap_degrees(offsets[near, 3:]))
    near[near] = (turned <= degrees).all(1)
    return near


def shows_new(views: NDArray[np.float64], pending: Pending | None, frames: Pending, config: ModelConfig) -> bool:
    """Whether a chunk has a frame without a view beside it.

    Args:
        views: float64 [n, 5], the remembered ones that it sees (`seen_views`).
        pending: Frames about to be remembered; None: none.
        frames: The chunk.
        config: `keyframe_blocks` and `keyframe_degrees`.
    """
    for pose in frames.poses:
        lately = pending is not None and any_beside(pending.poses, pose, config)
        if not lately and not any_beside(views, pose, config):
            return True
    return False


def seen_views(session: Session) -> NDArray[np.float64]:
    """Remembered views that a session's next chunk can see, float64 [n, 5]: without retrieval, those of the window."""
    poses = session.bank.poses
    if session.settings.memory in ("off", "window"):
        return poses[max(0, len(poses) - session.model.config.window) :]
    return poses


def new_views(poses: NDArray[np.float64], config: ModelConfig) -> NDArray[np.bool_]:
    """Which frames of a walk show something new: a view with none beside it before.

    Args:
        poses: float64 [T, 5].
        config: `keyframe_blocks` and `keyframe_degrees`.

    Returns:
        bool [T]. Only new views count as views before: frames between two of those are beside both.
    """
    views, count = np.empty_like(poses), 0
    new = np.zeros(len(poses), np.bool_)
    for t, pose in enumerate(poses):
        new[t] = not any_beside(views[:count], pose, config)
        if new[t]:
            views[count] = pose
            count += 1
    return new
