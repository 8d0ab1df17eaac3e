"""Episodes from the voxel world: generate worlds, walk through them, render the frames on the training device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .stream import Episodes

TRAINING_SEEDS = 7_000_000  # 0 .. this - 1
VALIDATION_SEED = 7_000_000  # the first of 1,000
CHANGED_LEVELS, CHANGED_PIXELS = 16, 8
VALIDATION_JOB = 1 << 40  # job numbers from here on are validation worlds


@dataclass(frozen=True)
class VoxelJob:
    """Make worlds and trajectories; job i is a pure function of (seed, i).

    Attributes:
        seed: Of the run.
        length: Frames of a trajectory.
        worlds: Worlds a job.
        per_world: Trajectories a world, alternately on the grid of poses and off it.
        kind: Kind of trajectory (`worlds.sample_trajectories`).
        edits: Share of the trajectories that break and place blocks; none in validation worlds.
        contact: Share of the others that run into walls.
        slow: Share of those off the grid that turn and walk slowly; none in validation worlds.
        beside: Share of returns beside the way out; none in validation worlds.
        tilted: Share of trajectories whose player looks up or down all the way; none in validation worlds.
        unsteady: Share of those without edits whose player's eyes wander; none in validation worlds.
    """

    seed: int
    length: int
    worlds: int = 2
    per_world: int = 2
    kind: str = "mixed"
    edits: float = 0.25
    contact: float = 0.0
    slow: float = 0.0
    beside: float = 0.0
    tilted: float = 0.0
    unsteady: float = 0.0

    def __call__(self, number: int) -> list[Episodes]:
        """Run job `number`; numbers from `VALIDATION_JOB` on give one validation world each."""
        from decmem_env.worlds import generate_world, sample_trajectories

        validation = number >= VALIDATION_JOB
        rng = np.random.default_rng([self.seed if not validation else 0, number])
        if validation:
            seeds = [VALIDATION_SEED + number - VALIDATION_JOB]
        else:
            seeds = [int(s) for s in rng.integers(0, TRAINING_SEEDS, self.worlds)]
        worlds = [generate_world(seed) for seed in seeds]
        actions: list[list[Any]] = [[] for _ in worlds]
        poses: list[list[Any]] = [[] for _ in worlds]
        edits: list[list[Any]] = [[] for _ in worlds]
        for turn in range(self.per_world):
            grid = bool((turn + number) % 2)
            editing = self.edits > 0 and not validation and rng.random() < self.edits
            touching = self.contact > 0 and rng.random() < self.contact
            kind = "edit" if editing else "contact" if touching else self.kind
            used = 0.0 if validation else 1.0
            walks = sample_trajectories(
                worlds,
                self.length,
                rng,
                kind,
                grid,
                slow=used * self.slow,
                beside=used * self.beside,
                tilted=used * self.tilted,
                unsteady=used * self.unsteady,
            )
            for i in range(len(worlds)):
                actions[i].append(np.asarray(walks.actions[i], np.float32))
                poses[i].append(np.asarray(walks.poses[i], np.float64))
                edits[i].append(walks.edits[i])
        return [
            Episodes(
                seed,
                np.stack(actions[i]),
                np.stack(poses[i]),
                blocks=np.asarray(world.blocks, np.uint8),
                edits=edits[i] if any(len(made) for made in edits[i]) else None,
            )
            for i, (seed, world) in enumerate(zip(seeds, worlds, strict=True))
        ]


class EpisodeRenderer:
    """Turns episodes into frames on the training device.

    Args:
        height: Pixels.
        width: Pixels.
        device: Where to render.
        chunk: Frames rendered at once.
    """

    def __init__(self, height: int, width: int, device: str | torch.device, chunk: int = 512) -> None:
        self.height, self.width, self.device, self.chunk = height, width, torch.device(device), chunk
        self._renderer: Any = None

    def render(self, blocks: Tensor, world_index: Tensor, poses: Tensor) -> Tensor:
        """Render worlds `blocks[world_index]` from poses [N, 5] (both on the CPU) to uint8 [N, H, W, 3]."""
        if self._renderer is None:
            from decmem_env.worlds import Renderer

            self._renderer = Renderer(self.height, self.width, device=str(self.device))
        parts = [
            self._renderer.render(blocks, world_index[i : i + self.chunk], poses[i : i + self.chunk]).rgb
            for i in range(0, len(poses), self.chunk)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def frames(self, episodes: Episodes) -> Tensor:
        """All frames of an episode, uint8 [n, L, H, W, 3] on the device."""
        n, length = episodes.poses.shape[:2]
        if episodes.frames is not None:
            return torch.from_numpy(episodes.frames).to(self.device)
        assert episodes.blocks is not None
        edits = episodes.edits
        blocks = torch.from_numpy(episodes.blocks)[None].to(self.device)
        if edits is None:
            poses = torch.from_numpy(episodes.poses.reshape(-1, 5))
            index = torch.zeros(len(poses), dtype=torch.int64)
            return self.render(blocks, index, poses).view(n, length, self.height, self.width, 3)
        return self._edited(blocks, torch.from_numpy(episodes.poses), edits)

    def changed(self, episodes: Episodes, frames: Tensor, cells: tuple[int, int]) -> Tensor | None:
        """Where edits show: cells in which a rendering of the unedited world differs.

        Args:
            episodes: With their edits.
            frames: uint8 [n, L, H, W, 3], their frames.
            cells: Rows and columns (h, w) of latents.

        Returns:
            bool [n, L, h, w]: at least `CHANGED_PIXELS` pixels differ by more than `CHANGED_LEVELS` (as the measures
            count an edit); None where no trajectory changes its world.
        """
        if episodes.edits is None:
            return None
        plain = self.frames(replace(episodes, edits=None))
        parts = []
        for edited, unedited in zip(
            frames.flatten(0, 1).split(self.chunk), plain.flatten(0, 1).split(self.chunk), strict=True
        ):
            differs = ((edited.short() - unedited.short()).abs() > CHANGED_LEVELS).any(-1)
            rows, columns = (size // count for size, count in zip(differs.shape[1:], cells, strict=True))
            parts.append(differs.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).sum((2, 4)) >= CHANGED_PIXELS)
        return torch.cat(parts).unflatten(0, frames.shape[:2])

    def _edited(self, blocks: Tensor, poses: Tensor, edits: list[NDArray[np.int32]]) -> Tensor:
        """Frames of trajectories [n, L, 5] that change their world [1, X, Z, Y], each for itself.

        A world is copied for every change of it: the GPU copies one in microseconds, and draws a whole trajectory at
        once in the time that it takes to start drawing a few frames.
        """
        from decmem_env.worlds.edited import stages

        length = poses.shape[1]
        rows = []
        for row, made in enumerate(edits):
            parts = list(stages(made, length))
            worlds = blocks.repeat(len(parts), 1, 1, 1)
            index = torch.zeros(length, dtype=torch.int64)
            for number, (first, last, start, _) in enumerate(parts):
                index[start:] = number
                for _, east, south, up, block in made[first:last].tolist():
                    worlds[number:, east, south, up] = block
            rows.append(self.render(worlds, index, poses[row]))
        return torch.stack(rows)
