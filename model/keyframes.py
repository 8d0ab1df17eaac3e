"""Which generated frames memory keeps: those that show what it does not hold yet.

A model that remembers every frame it makes soon remembers mostly its own, and believes them: each copy of a place is
made from copies, the nearest of which is the frame before. Mapping by camera (visual SLAM) keeps keyframes instead, one
for each view that is new, and so does this: a generated frame beside a remembered view is shown and forgotten. Known
places then stay as near to what was seen as a single step brings them, steps there need no commit, and memory grows
with the ground covered instead of with time.

Where hands have been at work nothing that was seen before covers anything: all frames from there on are kept until
those after the change cover the views around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..conventions.actions import ACTION_DIM
from ..conventions.poses import wrap_degrees
from .config import ModelConfig
from .voxel_rays import HANDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .memory import MemoryBank
    from .session import Pending, Session

CHANGED_WITHIN = 16.0  # blocks around a hand's work in which a change to one block can be seen
FORGETTING = ("memory", "dense", "decay")  # modes which see all of the past, and so need only keyframes of it


def hands_used(actions: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which latent frames break or place something: bool [n] of actions [n, A] (those of all frames of a latent)."""
    pressed: NDArray[np.bool_] = actions.reshape(len(actions), -1, ACTION_DIM)[..., HANDS] > 0.5
    return np.logical_or.reduce(pressed, (1, 2))


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
    if not config.keyframe_blocks or not frames.generated.all() or hands_used(frames.actions).any():
        return False
    return all(_view_known(bank, pose, config) for pose in frames.poses)


def _view_known(bank: MemoryBank, pose: NDArray[np.float64], config: ModelConfig) -> bool:
    away = np.linalg.norm(bank.poses[:, :3] - pose[:3], axis=1)
    turned = np.abs(wrap_degrees(bank.poses[:, 3:] - pose[3:])).max(1)
    beside = (away <= config.keyframe_blocks) & (turned <= config.keyframe_degrees)
    changes = bank.frame_index[bank.hands & (away <= CHANGED_WITHIN)]
    if len(changes):
        beside &= bank.frame_index >= changes[-1]
    return bool(beside.any())
