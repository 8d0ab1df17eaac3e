"""Where the player has been and what was seen there: poses and small pictures, shared between threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..conventions.poses import is_exact, is_near


def halve(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame at half its size, each pixel the mean of four, uint8 [H/2, W/2, 3]."""
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    parts = frame[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return (parts.sum((1, 3), dtype=np.uint16) // 4).astype(np.uint8)


class History:
    """Grows by one entry a frame; entry i is frame i of the session (true frames included).

    Pictures are kept at half size (11 KiB each at 96x160), a hundredth of what the model itself keeps of a frame.
    """

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._poses = np.empty((256, 5))
        self._pictures: list[NDArray[np.uint8]] = []

    def __len__(self) -> int:
        return len(self._pictures)

    def append(self, frame: NDArray[np.uint8], pose: NDArray[np.float64]) -> None:
        """Add a frame uint8 [H, W, 3] and its pose [5]."""
        picture = halve(frame)
        with self._lock:
            count = len(self._pictures)
            if count == len(self._poses):
                self._poses = np.concatenate([self._poses, np.empty_like(self._poses)])
            self._poses[count] = pose
            self._pictures.append(picture)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._pictures = []

    def poses(self) -> NDArray[np.float64]:
        """A copy of all poses, float64 [T, 5]."""
        with self._lock:
            return self._poses[: len(self._pictures)].copy()

    def picture(self, index: int) -> NDArray[np.uint8] | None:
        """Picture of frame `index`, None if there is no such frame."""
        with self._lock:
            return self._pictures[index] if 0 <= index < len(self._pictures) else None

    def returned_after(self) -> int | None:
        """Frames since the present view was left, if this is a return to it; None otherwise.

        A return is a pose exactly as before (0.05 block, 1 degree), with a frame in between that was not even near
        (2 blocks, 17 degrees).
        """
        poses = self.poses()
        if len(poses) < 3:
            return None
        away = np.flatnonzero(~is_near(poses[-1], poses[:-1]))
        if not len(away):
            return None
        before = np.flatnonzero(is_exact(poses[-1], poses[: away[-1]]))
        return len(poses) - 1 - int(before[-1]) if len(before) else None

    def save(self, folder: Path) -> None:
        """Write `history.npz`."""
        with self._lock:
            pictures, poses = np.stack(self._pictures), self._poses[: len(self._pictures)].copy()
        np.savez(folder / "history.npz", pictures=pictures, poses=poses)

    def load(self, folder: Path) -> None:
        """Read `history.npz`."""
        with np.load(folder / "history.npz", allow_pickle=False) as arrays:
            poses, pictures = arrays["poses"], list(arrays["pictures"])
        with self._lock:
            self._poses, self._pictures = np.concatenate([poses, np.empty((256, 5))]), pictures
