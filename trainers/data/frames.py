"""A pool of worlds (or clips) on the device from which the autoencoder draws fresh random frames."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decmem_env.conventions.poses import EYE_HEIGHT

from .stream import Episodes, EpisodeStream
from .voxel import EpisodeRenderer


def _all_edited(episodes: Episodes) -> NDArray[np.uint8]:
    """The world [X, Z, Y] after all edits of all its trajectories: single frames need no order in time.

    Edits that would put a block where a camera is on its way are left out.
    """
    assert episodes.blocks is not None
    if episodes.edits is None:
        return episodes.blocks
    blocks = episodes.blocks.copy()
    eyes = np.floor(episodes.poses[..., :3].reshape(-1, 3) + [0.0, EYE_HEIGHT, 0.0]).astype(int)
    taken = {(x, z, y) for x, y, z in eyes.tolist()}
    for _, x, z, y, block in np.concatenate(episodes.edits).tolist():
        if (x, z, y) not in taken:
            blocks[x, z, y] = block
    return blocks


class FramePool:
    """A ring of worlds with their trajectories, or of ready frames; the oldest makes room for the newest.

    Args:
        stream: Where episodes come from.
        renderer: Renders worlds; gives the frame size.
        capacity: Worlds or clips kept.
    """

    def __init__(self, stream: EpisodeStream, renderer: EpisodeRenderer, capacity: int) -> None:
        self.stream, self.renderer, self.capacity = stream, renderer, capacity
        self.count = self.added = 0
        self._blocks: Tensor | None = None
        self._frames: list[Tensor] = []
        self._poses: list[np.ndarray] = []

    def _insert(self, episodes: Episodes) -> None:
        slot = self.added % self.capacity
        poses = episodes.poses.reshape(-1, 5)
        if episodes.blocks is not None:
            if self._blocks is None:
                shape = (self.capacity, *episodes.blocks.shape)
                self._blocks = torch.empty(shape, dtype=torch.uint8, device=self.renderer.device)
            self._blocks[slot].copy_(torch.from_numpy(_all_edited(episodes)))
        else:
            frames = self.renderer.frames(episodes).flatten(0, 1)
            self._frames[slot : slot + 1] = [frames]
        self._poses[slot : slot + 1] = [poses]
        self.added += 1
        self.count = min(self.added, self.capacity)

    def fill(self, worlds: int) -> None:
        """Wait until this many worlds are there."""
        while self.count < worlds:
            self._insert(self.stream.get())

    def replay(self, added: int) -> None:
        """Bring back the content after `added` insertions from a stream that starts at its first job."""
        while self.added < added:
            self._insert(self.stream.get())

    def refresh(self, most: float) -> int:
        """Take in worlds that are ready, at most this many; returns how many."""
        taken = 0
        while taken < most and (episodes := self.stream.poll()) is not None:
            self._insert(episodes)
            taken += 1
        return taken

    def sample(self, count: int, rng: np.random.Generator) -> Tensor:
        """Draw random frames, uint8 [count, H, W, 3] on the device."""
        world = rng.integers(0, self.count, count)
        step = [int(rng.integers(0, len(self._poses[w]))) for w in world]
        if self._blocks is None:
            return torch.stack([self._frames[w][s] for w, s in zip(world, step, strict=True)])
        poses = torch.from_numpy(np.stack([self._poses[w][s] for w, s in zip(world, step, strict=True)]))
        return self.renderer.render(self._blocks, torch.from_numpy(world), poses)
