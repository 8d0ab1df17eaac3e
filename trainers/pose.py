"""The pose stage: reading the blocks around the player from latent frames, for `pose_source="predictor"`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from decmem_env.model.checkpoint import FILES
from decmem_env.model.pose_predictor import (
    ABOVE,
    BELOW,
    CLASSES,
    LAYERS,
    SIDE,
    SOLID,
    PoseConfig,
    PosePredictor,
    all_columns,
    around,
    save_pose,
)
from torch import Tensor, nn

from .config import ConfigError, TrainConfig
from .data.sources import open_stream
from .data.surroundings import SurroundingsBatch, SurroundingsPool
from .data.voxel import EpisodeRenderer
from .distributed import Ranks
from .files import replacing_folder
from .models import find_export, load_autoencoder
from .precision import autocast_of
from .profiling import Profile

_MAP = 32  # cells to each side of the map; a piece of a trajectory must not walk around it
_LONGEST = 28  # frames a piece: 12 blocks of walking and the reach to both sides fit into the map
_ASKED = 56  # columns a frame: all that are in sight
_HIDDEN_WEIGHT = 0.1  # of cells that no air touches: nobody can see or bump into them
_TOUCHED_WEIGHT = 3.0  # of cells the player can touch
_NOISE, _BLUR = 0.5, 0.6  # dreamt latents are a little wrong and softer than encoded ones


class PoseTask:
    """What the trainer needs to train `PosePredictor`.

    Args:
        config: Resolved settings.
        ranks: This process.
        init: Folder of a checkpoint, export or run whose latents are to be read.
        profile: Section timer.

    Raises:
        ConfigError: No `init`, or settings that do not fit.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, init: str | None, profile: Profile) -> None:
        if init is None:
            raise ConfigError("stage pose needs --init: the checkpoint whose latents it reads (model/weights/tiny)")
        if config.data.source != "voxel":
            raise ConfigError(f"data.source={config.data.source!r}: stage pose learns from voxel worlds, use voxel")
        if config.data.frames > _LONGEST:
            raise ConfigError(f"data.frames={config.data.frames}: at most {_LONGEST} for stage pose")
        self.config, self.ranks, self.profile = config, ranks, profile
        self.folder, device = find_export(init), ranks.device
        self.codec = load_autoencoder(self.folder).to(device).eval().requires_grad_(False)
        if device.type == "cuda":
            self.codec = self.codec.half()
        size = self.codec.config
        self.model = PosePredictor(PoseConfig(*size.latent_shape)).to(device)
        self.module: nn.Module = self.model
        self.renderer = EpisodeRenderer(size.height, size.width, device)
        self.frames_per_step = config.data.batch * config.data.frames * ranks.size
        self.precision = autocast_of(config, device)
        self._columns = all_columns(device)
        near = self._columns.abs().amax(-1)
        self._near = near <= 2
        self._weight = torch.where(near <= 1, _TOUCHED_WEIGHT, 1.0).repeat_interleave(LAYERS)
        self._validation: SurroundingsPool | None = None

    def _pool(self, stream: Any, capacity: int) -> SurroundingsPool:
        length = self.config.data.episode_frames
        return SurroundingsPool(
            stream, self.renderer, self.codec.encode, capacity, length, self.codec.config.latent_shape
        )

    def open(self, data: dict[str, Any]) -> None:
        """Start the data workers; `data` is the position of a resumed run."""
        exact = self.config.data.workers == 0
        size = (self.codec.config.height, self.codec.config.width)
        self.stream = open_stream(self.config, self.ranks, size, first=0 if exact else data.get("job", 0))
        self.pool = self._pool(self.stream, self.config.data.pool_episodes)
        if exact:
            self.pool.replay(data.get("added", 0), data.get("allowance", 0.0))

    def fill(self) -> None:
        """Wait for the first trajectories."""
        self.pool.fill(self.config.data.min_fill)

    def position(self) -> dict[str, Any]:
        """Position in the data."""
        return {"job": self.stream.next_job, "added": self.pool.added, "allowance": self.pool.allowance}

    def next_batch(self, rng: np.random.Generator) -> SurroundingsBatch:
        """Pieces of one step, their latents disturbed as dreamt ones are."""
        with self.profile.section("sample"):
            batch = self.pool.pieces(self.config.data.batch, self.config.data.frames, rng)
            batch.latents = disturbed(batch.latents)
        return batch

    def loss(self, batch: SurroundingsBatch, rng: np.random.Generator) -> Tensor:
        """Mean cross entropy of the map after each frame."""
        return self._follow(batch)[0]

    def _follow(self, batch: SurroundingsBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Walk through the pieces with an empty map at the start.

        Returns:
            Loss; shares of the surface cells within two columns that are right with the map, and that are solid.
        """
        rows, frames = batch.labels.shape[:2]
        with self.precision():
            features = self.model.read(batch.latents.flatten(0, 1)).unflatten(0, (rows, frames))
        known = torch.zeros(rows, _MAP**3, CLASSES, device=batch.latents.device)
        weights = surface_weight(batch.labels) * self._weight
        total = mass = right = solid = judged = torch.zeros((), device=batch.latents.device)
        layers = torch.arange(-BELOW, ABOVE + 1, device=known.device)
        for t in range(frames):
            inner, angles = batch.inner[:, t], batch.angles[:, t]
            asked, chosen = self.model.asked(inner, angles).byte().topk(_ASKED, -1)
            columns = self._columns[chosen]
            x, z = (batch.cell[:, t, None, None, ::2] + around(columns, angles)).remainder(_MAP).unbind(-1)
            y = (batch.cell[:, t, 1:2] + layers).remainder(_MAP)[:, None, None]
            place = ((x * _MAP + z) * _MAP)[..., None] + y
            before = known.gather(1, place.flatten(1)[..., None].expand(-1, -1, CLASSES)).view(*place.shape, CLASSES)
            with self.precision():
                after = self.model.update(features[:, t], columns, inner, angles, batch.climb[:, t], before)
            # A filter, not a recurrent net: the best map of each frame is also the best start for the next.
            kept = torch.where(asked[..., None, None] > 0, after.detach(), before[:, :, 0]).flatten(1, 2)
            known = known.scatter(1, place[:, :, 0].flatten(1)[..., None].expand(-1, -1, CLASSES), kept)
            index = chosen[..., None].expand(-1, -1, LAYERS)
            labels = batch.labels[:, t].unflatten(1, (-1, LAYERS)).gather(1, index)
            weight = weights[:, t].unflatten(1, (-1, LAYERS)).gather(1, index) * asked[..., None]
            error = F.cross_entropy(after.flatten(0, 2), labels.flatten(), reduction="none").view_as(weight)
            total, mass = total + (error * weight).sum(), mass + weight.sum()
            counted = self._near[chosen][..., None] & (weight > _TOUCHED_WEIGHT * _HIDDEN_WEIGHT)
            right = right + (counted & (after.argmax(-1) == labels)).sum()
            solid, judged = solid + (counted & (labels == SOLID)).sum(), judged + counted.sum()
        return total / mass, right / judged, solid / judged

    def after_step(self) -> None:
        """Take in new trajectories."""
        with self.profile.section("refresh"):
            self.pool.refresh(self.config.data.refresh_ratio * self.frames_per_step)

    @torch.no_grad()
    def evaluate(self, rng: np.random.Generator) -> dict[str, float]:
        """Score the weights in place on held-out worlds.

        Returns:
            near_accuracy: share of the cells within two columns, at the border of air and something, that are right;
            near_solid: what always saying solid would score; cross_entropy.
        """
        if self._validation is None:
            episodes = self.stream.urgent_results()
            if not episodes:
                return {}
            self._validation = self._pool(None, sum(len(one.poses) for one in episodes))
            for one in episodes:
                self._validation._insert(one)
        pool, fixed = self._validation, np.random.default_rng(0)
        self.model.eval()
        scores = [
            torch.stack(self._follow(pool.pieces(self.config.data.batch, self.config.data.frames, fixed)))
            for _ in range(max(1, min(512 // self.config.data.batch, 32)))
        ]
        self.model.train()
        loss, accuracy, solid = torch.stack(scores).mean(0).tolist()
        return {"near_accuracy": accuracy, "near_solid": solid, "cross_entropy": loss}

    def export(self, folder: Path) -> None:
        """Write the checkpoint of `init` with the weights in place as `pose.safetensors`."""
        with replacing_folder(folder) as fresh:
            for name in FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, fresh / name)
            save_pose(fresh, self.model)

    def close(self) -> None:
        """Stop the workers."""
        self.stream.close()


def surface_weight(labels: Tensor) -> Tensor:
    """1 for cells with another kind of block beside, above or below, `_HIDDEN_WEIGHT` for the others.

    Args:
        labels: int64 [B, T, CELLS].
    """
    grid = labels.view(-1, 1, SIDE, SIDE, LAYERS).float()
    surface = torch.zeros_like(grid, dtype=torch.bool)
    for axis in (2, 3, 4):
        differs = grid.diff(dim=axis) != 0
        edge = torch.zeros_like(differs.narrow(axis, 0, 1))
        surface |= torch.cat([differs, edge], axis) | torch.cat([edge, differs], axis)
    return torch.where(surface, 1.0, _HIDDEN_WEIGHT).view(labels.shape)


def disturbed(latents: Tensor) -> Tensor:
    """Latents [B, T, C, h, w] as a dream might show them: half of the pieces get noise, half of them blur."""
    rows = len(latents)
    shape = (rows, 1, 1, 1, 1)
    level = torch.rand(2, *shape, device=latents.device) * (torch.rand(2, *shape, device=latents.device) < 0.5)
    flat = latents.flatten(0, 1)
    soft = F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False).view_as(latents)
    latents = torch.lerp(latents, soft, _BLUR * level[0])
    return latents + _NOISE * level[1] * torch.randn_like(latents)
