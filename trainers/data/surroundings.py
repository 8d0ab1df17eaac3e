"""Encoded trajectories with the blocks around the player at each frame: what the pose predictor learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from decmem_env.model.pose_predictor import AIR, CELLS, SOLID, WATER, template
from numpy.typing import NDArray
from torch import Tensor

from .latents import LatentPool
from .stream import Episodes


@dataclass
class SurroundingsBatch:
    """Pieces of trajectories, on the device.

    Attributes:
        latents: float32 [B, T, C, h, w].
        cell: int64 [B, T, 3], the cell (x, y, z) that holds the feet.
        inner: float32 [B, T, 3], position of the feet in it.
        angles: float32 [B, T, 2], pitch and yaw in degrees.
        climb: float32 [B, T], by how much the player rose since the frame before.
        labels: int64 [B, T, CELLS], air, solid or water, in the order of `pose_predictor.template`.
        generated: bool [B, T], frames that the model made.
        moved: bool [B, T], frames seen from elsewhere than the one before, or by a player that rose otherwise.
    """

    latents: Tensor
    cell: Tensor
    inner: Tensor
    angles: Tensor
    climb: Tensor
    labels: Tensor
    generated: Tensor
    moved: Tensor


def split_poses(poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cell int64 [..., 3], place in it float32 [..., 3], pitch and yaw float32 [..., 2] of poses float64 [..., 5]."""
    # A foot that rests on a block may lie a rounding error below its top.
    cell = torch.floor(poses[..., :3] + 1e-4)
    return cell.long(), (poses[..., :3] - cell).float(), poses[..., 3:].float()


def surroundings(blocks: Tensor, cells: Tensor) -> Tensor:
    """What lies around players: stone beyond the sides and below the bottom, air above the top, as the physics has it.

    Args:
        blocks: uint8 [X, Z, Y].
        cells: int64 [n, 3], cells (x, y, z) of their feet, on any device.

    Returns:
        uint8 [n, CELLS], `AIR`, `SOLID` or `WATER`.
    """
    from decmem_env.worlds.blocks import AIR as AIR_BLOCK
    from decmem_env.worlds.blocks import WATER as WATER_BLOCK

    size = torch.tensor([blocks.shape[0], blocks.shape[2], blocks.shape[1]], device=blocks.device)
    around = cells.to(blocks.device)[:, None] + template(blocks.device)
    x, y, z = around.minimum(size - 1).clamp_min(0).unbind(-1)
    found = blocks[x, z, y]
    kinds = torch.full_like(found, SOLID)
    kinds[found == AIR_BLOCK] = AIR
    kinds[found == WATER_BLOCK] = WATER
    beyond = (around < 0).any(-1) | (around >= size)[..., [0, 2]].any(-1)
    kinds[beyond] = SOLID
    kinds[~beyond & (around[..., 1] >= size[1])] = AIR
    return kinds


class SurroundingsPool(LatentPool):
    """A `LatentPool` whose trajectories also carry the blocks around the player."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stamps = np.full(self.capacity, -1)  # which trajectory a slot holds, counted from the first
        self.labels = torch.zeros((self.capacity, self.length, CELLS), dtype=torch.uint8, device=self.renderer.device)
        self.generated = torch.zeros(self.labels.shape[:2], dtype=torch.bool, device=self.renderer.device)

    def _insert(self, episodes: Episodes) -> int:
        from decmem_env.worlds.edited import draw_edited, no_edits

        assert episodes.blocks is not None
        blocks = torch.from_numpy(episodes.blocks).to(self.labels.device, copy=True)
        cells = split_poses(torch.from_numpy(episodes.poses))[0]
        for row in range(len(cells)):
            slot = (self.added + row) % self.capacity
            self.stamps[slot], target = self.added + row, self.labels[slot]

            def look(start: int, stop: int, row: int = row, target: Tensor = target) -> None:
                target[start:stop] = surroundings(blocks, cells[row, start:stop])

            draw_edited(blocks, no_edits() if episodes.edits is None else episodes.edits[row], self.length, look)
        return super()._insert(episodes)

    def take(self, source: SurroundingsPool, slot: int, latents: Tensor, first: int) -> None:
        """Insert a trajectory of another pool, from frame `first` on with generated latents, of [L, C, h, w]."""
        own = self.added % self.capacity
        self.stamps[own], self.labels[own] = self.added, source.labels[slot]
        self.latents[own, :first], self.latents[own, first:] = source.latents[slot, :first], latents[first:]
        self.generated[own] = torch.arange(self.length, device=latents.device) >= first
        self.actions[own], self.poses[own] = source.actions[slot], source.poses[slot]
        self.added += 1
        self.count = min(self.added, self.capacity)

    def pieces(self, which: NDArray[np.int64], start: NDArray[np.int64], frames: int) -> SurroundingsBatch:
        """Cut pieces of `frames` consecutive frames from the trajectories in slots `which` [B], from `start` [B] on."""
        index = start[:, None] + np.arange(frames)
        device = self.latents.device
        take = torch.from_numpy(which[:, None] * self.length + index).to(device)
        now, before, earlier = (self.poses[which[:, None], np.maximum(index - back, 0)] for back in range(3))
        climb, rose = now[..., 1] - before[..., 1], before[..., 1] - earlier[..., 1]
        moved = (now != before).any(-1) | (climb != rose) | (index == 0)
        cell, inner, angles = split_poses(torch.from_numpy(now))
        return SurroundingsBatch(
            self.latents.flatten(0, 1)[take].float(),
            cell.to(device),
            inner.to(device),
            angles.to(device),
            torch.from_numpy(climb).float().to(device),
            self.labels.flatten(0, 1)[take].long(),
            self.generated.flatten(0, 1)[take],
            torch.from_numpy(moved).to(device),
        )


def joined(batches: Sequence[SurroundingsBatch]) -> SurroundingsBatch:
    """One batch of the rows of several."""
    return SurroundingsBatch(*(torch.cat([getattr(b, f.name) for b in batches]) for f in fields(SurroundingsBatch)))


class Followers:
    """Rows that follow trajectories of a pool, a piece at a time: what was seen in one piece is known in the next.

    Args:
        pool: Where the trajectories are.
        rows: B.
        frames: Of a piece.
    """

    def __init__(self, pool: SurroundingsPool, rows: int, frames: int) -> None:
        self.pool, self.frames = pool, frames
        self._slot, self._stamp = np.zeros(rows, np.int64), np.full(rows, -2)
        self._start = np.zeros(rows, np.int64)
        self._begun = False

    def next(self, rng: np.random.Generator) -> tuple[SurroundingsBatch, NDArray[np.bool_]]:
        """The next piece of every row, and which rows began another trajectory with it, bool [B]."""
        pool, frames = self.pool, self.frames
        self._start += frames
        over = self._start + frames > pool.length
        fresh = over | (pool.stamps[self._slot] != self._stamp)  # or the pool needed the slot
        count = int(fresh.sum())
        # At first anywhere, so that rows do not come to their ends together.
        latest = min(frames - 1, pool.length - frames) if self._begun else pool.length - frames
        self._slot[fresh], self._start[fresh] = rng.integers(0, pool.count, count), rng.integers(0, latest + 1, count)
        self._stamp[fresh] = pool.stamps[self._slot[fresh]]
        self._begun = True
        return pool.pieces(self._slot, self._start, frames), fresh
