"""A ring of encoded trajectories on the device, refreshed while training, and the clips drawn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from decmem_env.model.voxel_rays import views
from numpy.typing import NDArray
from torch import Tensor

from decmem_env.conventions.actions import Action
from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices

from ..config import DataConfig
from .splice import age, jump_times, jumping_clip, revisit_table, sample_clip, view_numbers
from .stream import Episodes, EpisodeStream
from .voxel import EpisodeRenderer

WIDEST = 2.5  # apart (`nearest_views.apart`): five blocks


@dataclass
class ClipBatch:
    """Inputs of one dynamics step, on the device.

    Attributes:
        latents: float32 [B, T, C, h, w], clean.
        actions: float32 [B, T, 25].
        projective: float32 [B, T, 4, 4].
        projective_inverse: float32 [B, T, 4, 4].
        frame_index: int64 [B, T].
        poses: float64 [B, T, 5], on the CPU.
        cells: float64 [B, T, 3], the cells that hands change, on the CPU; NaN where that is not told.
        view: float32 [B, T, 8 + 4 K], what the block grid sees of them (`model.voxel_rays`).
        changed: bool [B, T, h, w], where blocks that a player broke or placed show; None: nowhere.
        hidden: float64 [B, T], how near views are that a frame does not get to see by place (`nearest_views.apart`), on
            the CPU; None: none is hidden.
        new: bool [B, T], frames that show something new (`model.keyframes.new_views`); None: not asked.
        seen: int32 [B, T, n] and [B, T], what frames see by place (`WorldTransformer.teacher_forcing`); None: nothing.
    """

    latents: Tensor
    actions: Tensor
    projective: Tensor
    projective_inverse: Tensor
    frame_index: Tensor
    poses: NDArray[np.float64]
    cells: NDArray[np.float64]
    view: Tensor
    changed: Tensor | None = None
    hidden: NDArray[np.float64] | None = None
    new: Tensor | None = None
    seen: tuple[Tensor, Tensor] | None = None


def make_batch(
    latents: Tensor,
    actions: NDArray[np.float32],
    poses: NDArray[np.float64],
    frame_index: NDArray[np.int64],
    cells: NDArray[np.float64] | None = None,
) -> ClipBatch:
    """Put a batch on the device of its latents; camera translations are relative to each clip's first frame.

    `cells` float64 [B, T, 3] are those that hands change, NaN where that is not told; None: nowhere.
    """
    cells = np.full((*poses.shape[:2], 3), np.nan) if cells is None else cells
    intrinsics = normalised_intrinsics(*latents.shape[-2:])  # pixels are square, so only the ratio matters
    matrix, inverse = projective_matrices(poses, intrinsics, poses[:, :1])
    device = latents.device

    def move(array: NDArray, dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    return ClipBatch(
        latents.float(),
        move(actions, torch.float32),
        move(matrix, torch.float32),
        move(inverse, torch.float32),
        move(frame_index, torch.int64),
        poses,
        cells,
        move(views(poses, cells), torch.float32),
    )


class LatentPool:
    """A ring of trajectories as latents; the oldest makes room for the newest.

    Args:
        stream: Where episodes come from.
        renderer: Renders them.
        encode: uint8 [N, H, W, 3] -> latents [N, C, h, w].
        capacity: Trajectories kept.
        length: L, frames of a trajectory.
        latent_shape: (C, h, w).
    """

    def __init__(
        self,
        stream: EpisodeStream,
        renderer: EpisodeRenderer,
        encode: Callable[[Tensor], Tensor],
        capacity: int,
        length: int,
        latent_shape: tuple[int, int, int],
    ) -> None:
        self.stream, self.renderer, self.encode, self.capacity, self.length = stream, renderer, encode, capacity, length
        dtype = torch.float16 if renderer.device.type == "cuda" else torch.float32
        self.latents = torch.zeros((capacity, length, *latent_shape), dtype=dtype, device=renderer.device)
        self.changed = torch.zeros((capacity, length, *latent_shape[1:]), dtype=torch.bool, device=renderer.device)
        self.actions = np.zeros((capacity, length, 25), np.float32)
        self.poses = np.zeros((capacity, length, 5))
        self.views = np.zeros((capacity, length), np.int64)
        self.cells = np.full((capacity, length, 3), np.nan)  # (x, y, z) that a hand changes
        self.tables: list[NDArray[np.bool_]] = []
        self.count = self.added = 0
        self.allowance = 0.0

    def _insert(self, episodes: Episodes) -> int:
        frames = self.renderer.frames(episodes)
        rows, columns = self.changed.shape[2:]
        changed = self.renderer.changed(episodes, frames, (rows, columns))
        for i in range(len(frames)):
            slot = self.added % self.capacity
            self.latents[slot] = self.encode(frames[i]).to(self.latents.dtype)
            self.changed[slot] = False if changed is None else changed[i]
            self.actions[slot], self.poses[slot] = episodes.actions[i], episodes.poses[i]
            self.views[slot] = view_numbers(episodes.poses[i])
            self.cells[slot] = np.nan
            if episodes.edits is not None:
                made = episodes.edits[i]
                made = made[made[:, 0] < self.length]
                self.cells[slot, made[:, 0]] = made[:, [1, 3, 2]]
            self.tables[slot : slot + 1] = [revisit_table(episodes.poses[i])]
            self.added += 1
        self.count = min(self.added, self.capacity)
        return frames.shape[0] * frames.shape[1]

    def changes(self, slot: int) -> NDArray[np.bool_]:
        """Frames of a trajectory whose action breaks or places."""
        return (self.actions[slot][:, [Action.ATTACK, Action.PLACE]] > 0.5).any(-1)

    def fill(self, trajectories: int) -> None:
        """Wait until this many trajectories are there."""
        while self.count < trajectories:
            self._insert(self.stream.get())

    def replay(self, added: int, allowance: float) -> None:
        """Bring back the content after `added` insertions from a stream that starts at its first job."""
        while self.added < added:
            episodes = self.stream.get()
            if self.added + len(episodes.poses) <= added - self.capacity:
                self.added += len(episodes.poses)
                self.tables = self.tables or [revisit_table(episodes.poses[0])] * self.capacity
            else:
                self._insert(episodes)
        self.allowance = allowance

    def refresh(self, frames: float) -> None:
        """Allow this many more new frames; takes in episodes that are ready while the allowance lasts."""
        # Unused allowance is kept only in part: after a pause the pool must not stall the training to catch up.
        self.allowance = min(self.allowance + frames, 4.0 * self.length)
        while self.allowance > 0 and (episodes := self.stream.poll()) is not None:
            self.allowance -= self._insert(episodes)

    def _clip(
        self, slot: int, data: DataConfig, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Frame numbers and times of one clip of a trajectory."""
        table, changes = self.tables[slot], self.changes(slot)
        if rng.random() < data.jumps:
            index = jumping_clip(table, self.views[slot], data.frames, rng, changes)
            return index, jump_times(index, self.length, rng)
        index = sample_clip(table, self.length, data.frames, data.splice, rng, changes)
        return index, index

    def sample(self, data: DataConfig, rng: np.random.Generator) -> ClipBatch:
        """Draw a batch of clips, with the gaps (`splice`), jumps, ages (`aged`) and offsets of the settings."""
        count = data.batch
        which = rng.integers(0, self.count, count)
        clips = [self._clip(int(w), data, rng) for w in which]
        index, shown = (np.stack(part) for part in zip(*clips, strict=True))
        rows = which[:, None]
        device = self.latents.device
        take = torch.from_numpy(rows * self.length + index)
        take = take.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else take
        latents, changed = self.latents.flatten(0, 1)[take], self.changed.flatten(0, 1)[take]
        times = np.stack([age(row, rng) if rng.random() < data.aged else row for row in shown])
        start = rng.integers(0, data.frame_offset + 1, (count, 1))
        cells = np.where(rng.random((count, 1, 1)) < data.told, self.cells[rows, index], np.nan)
        batch = make_batch(latents, self.actions[rows, index], self.poses[rows, index], times + start, cells)
        hidden = None
        if data.wide > 0:
            wide = (rng.random(count) < data.wide) & ~np.array([self.changes(int(w)).any() for w in which])
            hidden = WIDEST * rng.random(index.shape) * wide[:, None]
        return replace(batch, changed=changed, hidden=hidden)
