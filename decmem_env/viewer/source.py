"""What the viewer plays: a source gives one frame for one action. The true world and the dream are sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[str, int, int, "NDArray[np.uint8] | None"], None]
"""Called with what is being done, how much is done, of how much, and a picture to look at meanwhile."""


def _nothing() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame with everything the window shows about it.

    Attributes:
        frame: uint8 [H, W, 3].
        pose: float64 [5], see `conventions.poses`.
        action: float32 [25] that led here.
        index: Frames before this one in the session, true ones included.
        step_ms: Time the source worked on it (the true picture beside it not counted).
        memory_frames: Frames in memory.
        memory_bytes: Their size.
        forgotten: Frames that were in memory and had to go because its budget was used up.
        truth: uint8 [H, W, 3], the true world at the same pose, when asked for.
        retrieved: int64 [K], indices of the frames that were looked up, by content or by place, most used first.
        shares: float64 [K], share of all retrieved blocks (equal by place), summing to 1.
    """

    frame: NDArray[np.uint8]
    pose: NDArray[np.float64]
    action: NDArray[np.float32]
    index: int
    step_ms: float = 0.0
    memory_frames: int = 0
    memory_bytes: int = 0
    forgotten: int = 0
    truth: NDArray[np.uint8] | None = None
    retrieved: NDArray[np.int64] = field(default_factory=_nothing)
    shares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False)
class Opening:
    """How a world begins: the true frames that are remembered; the last one is where the player stands.

    Attributes:
        frames: uint8 [C, H, W, 3].
        poses: float64 [C, 5].
        shot: The last frame.
    """

    frames: NDArray[np.uint8]
    poses: NDArray[np.float64]
    shot: Shot


class PlaySource(Protocol):
    """A world that can be played. Used from one thread only."""

    title: str
    seed: int
    pose_source: str

    def reset(self, seed: int, progress: Progress) -> Opening:
        """Begin the world of a seed."""
        ...

    def step(self, action: NDArray[np.float32], truth: bool = False) -> Shot:
        """Make the next frame; with `truth` also the true picture at its pose."""
        ...

    def true_picture(self) -> NDArray[np.uint8]:
        """The true world at the present pose, uint8 [H, W, 3]."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a replay must know: checkpoint and its hash, sampler, kernels, device."""
        ...

    def save(self, folder: Path) -> None:
        """Write the whole state into an existing folder."""
        ...

    def load(self, folder: Path, seed: int) -> None:
        """Continue from a saved state of the world of a seed.

        Raises:
            ValueError: The state is of another checkpoint or format.
        """
        ...

    def close(self) -> None:
        """Free what the source holds."""
        ...
