"""The true voxel world as something to play."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import noop
from .source import Opening, Progress, Shot
from .stage import Stage


class TrueSource:
    """Simulator and renderer, no model."""

    title = "voxel"
    pose_source = "truth"

    def __init__(self, height: int = 96, width: int = 160) -> None:
        """Frames of any size the renderer can make."""
        self.seed = 0
        self._size = (height, width)
        self._index = 0
        self._stage: Stage | None = None

    @property
    def stage(self) -> Stage:
        """The world being played.

        Raises:
            RuntimeError: Before `reset`.
        """
        if self._stage is None:
            raise RuntimeError("no world yet: call reset first")
        return self._stage

    def reset(self, seed: int, progress: Progress) -> Opening:
        """Begin at the spawn."""
        progress("building the world", 0, 1, None)
        self.seed, self._index = seed, 0
        self._stage = Stage(seed, *self._size)
        frame, pose = self.true_picture(), self.stage.pose
        return Opening(frame[None], pose[None], Shot(frame, pose, noop(), 0))

    def step(self, action: NDArray[np.float32], truth: bool = False) -> Shot:
        """One tick of the player and one picture."""
        start = time.perf_counter()
        pose = self.stage.move(action)
        frame = self.stage.picture(pose)
        self._index += 1
        spent = 1000.0 * (time.perf_counter() - start)
        return Shot(frame, pose, action, self._index, spent, truth=frame if truth else None)

    def true_picture(self) -> NDArray[np.uint8]:
        """The world from where the player stands."""
        return self.stage.picture(self.stage.pose)

    def describe(self) -> dict[str, Any]:
        """Only the world's version matters."""
        return {"checkpoint": "voxel", "checkpoint_hash": None, "frame_size": list(self._size)}

    def save(self, folder: Path) -> None:
        """Write the world's state."""
        self.stage.save(folder)
        np.savez(folder / "source.npz", index=self._index)

    def load(self, folder: Path, seed: int) -> None:
        """Read the world's state."""
        stage = Stage(seed, *self._size)
        stage.load(folder)
        with np.load(folder / "source.npz", allow_pickle=False) as arrays:
            self._index = int(arrays["index"])
        self.seed, self._stage = seed, stage

    def close(self) -> None:
        """Nothing is held."""
