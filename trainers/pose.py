"""The pose stage: reading the blocks around the player from latent frames, for `pose_source="predictor"`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
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
    bounded,
    load_pose,
    save_pose,
)
from decmem_env.model.weight_files import CheckpointError
from torch import Tensor, nn

from .config import ConfigError, TrainConfig
from .data.dreams import Dreamer
from .data.sources import open_stream
from .data.surroundings import Followers, SurroundingsBatch, SurroundingsPool, joined
from .data.voxel import EpisodeRenderer
from .distributed import Ranks
from .files import StateError, replacing_folder
from .models import TRANSFORMER, find_export, load_autoencoder
from .precision import autocast_of
from .profiling import Profile

_MAP = 32  # cells to each side of the map, which is a torus
_KEPT = 14, 10  # cells to each side and up and down of the player that outlive a piece: the rest would come around
_LONGEST = 24  # frames a piece: 10.4 blocks of walking, and what was kept must not come within reach from behind
_ASKED = 56  # columns a frame: all that are in sight
_HIDDEN_WEIGHT = 0.1  # of cells that no air touches: nobody can see or bump into them
_NEAR_WEIGHT, _TOUCHED_WEIGHT = 3.0, 10.0  # of columns that the player can touch, and of its own heights in them
_TOUCHED = 1, 2  # layers below and from the feet's that a walking player touches: ground, feet, head, room to step up
_NOISE, _BLUR, _DISTURBED = 0.5, 0.6, 0.15  # dreamt latents are a little wrong and softer; share of pieces
_DREAMERS = 40  # walks that are dreamed at once, a frame of each in every step
_DREAMS = 512  # dreamed walks kept


@dataclass
class Piece:
    """One step's work.

    Attributes:
        batch: Pieces of B trajectories.
        fresh: bool [B], those that begin with an empty map.
    """

    batch: SurroundingsBatch
    fresh: Tensor


class PoseTask:
    """What the trainer needs to train `PosePredictor`.

    Args:
        config: Resolved settings.
        ranks: This process.
        init: Folder of a checkpoint, export or run whose latents are to be read; its reader, if any, is trained on.
        profile: Section timer.

    Raises:
        ConfigError: No `init`, or settings that do not fit.
        StateError: The reader in `init` is damaged or reads other latents.
    """

    adversary = None

    def __init__(self, config: TrainConfig, ranks: Ranks, init: str | None, profile: Profile) -> None:
        if init is None:
            raise ConfigError("stage pose needs --init: the checkpoint whose latents it reads (model/weights/tiny)")
        if config.data.source != "voxel":
            raise ConfigError(f"data.source={config.data.source!r}: stage pose learns from voxel worlds, use voxel")
        if config.data.frames > _LONGEST:
            raise ConfigError(f"data.frames={config.data.frames}: at most {_LONGEST} for stage pose")
        self.config, self.ranks, self.profile = config, ranks, profile
        self.folder, device = find_export(init), ranks.device
        if config.data.dreams and not (self.folder / TRANSFORMER).is_file():
            raise ConfigError(f"data.dreams={config.data.dreams}: {self.folder} has no {TRANSFORMER}, use 0")
        self.codec = load_autoencoder(self.folder).to(device).eval().requires_grad_(False)
        if device.type == "cuda":
            self.codec = self.codec.half()
        size = self.codec.config
        try:
            reader = load_pose(self.folder, size.latent_shape) or PosePredictor(PoseConfig(*size.latent_shape))
        except CheckpointError as error:
            raise StateError(f"--init {init}: {error}") from None
        self.model = reader.train().requires_grad_(True).to(device)
        self.module: nn.Module = self.model
        self.renderer = EpisodeRenderer(size.height, size.width, device)
        self.frames_per_step = config.data.batch * config.data.frames * ranks.size
        self.precision = autocast_of(config, device)
        self._columns = all_columns(device)
        self._layers = torch.arange(-BELOW, ABOVE + 1, device=device)
        near = (self._columns.abs().amax(-1) <= 1)[:, None]
        self._touched = near & (self._layers >= -_TOUCHED[0]) & (self._layers <= _TOUCHED[1])  # [COLUMNS, LAYERS]
        self._weight = torch.where(self._touched, _TOUCHED_WEIGHT, torch.where(near, _NEAR_WEIGHT, 1.0))
        self._map = self._empty_map(config.data.batch)
        self._validation: SurroundingsPool | None = None
        self._dreamer: Dreamer | None = None

    def _shares(self) -> tuple[int, int]:
        """Rows of true and of dreamed latents."""
        dreamed = round(self.config.data.batch * self.config.data.dreams)
        return self.config.data.batch - dreamed, dreamed

    def _empty_map(self, rows: int) -> Tensor:
        return torch.zeros(rows, _MAP**3, CLASSES, device=self._columns.device)

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
        self._rows = [Followers(self.pool, rows, self.config.data.frames) for rows in self._shares() if rows]
        if self._shares()[1]:
            self._dreams = self._pool(None, _DREAMS)
            self._dreamer = Dreamer(self.folder, self.pool, self._dreams, _DREAMERS, self.config.run.seed)
        if exact:
            self.pool.replay(data.get("added", 0), data.get("allowance", 0.0))

    def fill(self) -> None:
        """Wait for the first trajectories."""
        self.pool.fill(self.config.data.min_fill)

    def position(self) -> dict[str, Any]:
        """Position in the data."""
        return {"job": self.stream.next_job, "added": self.pool.added, "allowance": self.pool.allowance}

    def next_batch(self, rng: np.random.Generator) -> Piece:
        """Pieces of one step, some of the true ones disturbed as dreamt ones are and said to be generated."""
        with self.profile.section("sample"):
            if self._dreamer is not None and self._rows[-1].pool is self.pool and self._dreams.count:
                # Until the first dreams are there, all rows follow true walks.
                self._rows[-1] = Followers(self._dreams, self._shares()[1], self.config.data.frames)
            batches, fresh = zip(*(rows.next(rng) for rows in self._rows), strict=True)
            batch = joined(batches)
            true = ~batch.generated.any(1)
            latents, changed = disturbed(batch.latents)
            batch.latents = torch.where(true[:, None, None, None, None], latents, batch.latents)
            batch.generated = batch.generated | (true & changed)[:, None]
            return Piece(batch, torch.from_numpy(np.concatenate(fresh)).to(self._map.device))

    def loss(self, piece: Piece, rng: np.random.Generator) -> Tensor:
        """Mean cross entropy of the map after each frame; maps go on to the next piece of their trajectories."""
        self._map *= ~piece.fresh[:, None, None]  # an assignment would wait for the device
        return self._follow(piece.batch, self._map)[0]

    def _follow(self, batch: SurroundingsBatch, known: Tensor) -> tuple[Tensor, Tensor]:
        """Walk through pieces.

        A filter, not a recurrent net: the best map of each frame is also the best start for the next. So the maps are
        made first, frame by frame and without gradients, and then all frames are learnt from at once.

        Args:
            batch: The pieces.
            known: float32 [B, _MAP ** 3, 3], the maps they start with; changed in place.

        Returns:
            Loss; counts float32 [4] of the cells at borders that a player touches and those of them that are right,
            then of those that the player has to fear or to stand on (`SOLID`).
        """
        rows, frames = batch.labels.shape[:2]
        inner, angles = batch.inner.flatten(0, 1), batch.angles.flatten(0, 1)
        with self.precision():
            features = self.model.read(batch.latents.flatten(0, 1), inner, angles)
            asked, chosen = self.model.asked(inner, angles).byte().topk(_ASKED, -1)
            columns = self._columns[chosen]
            seen = self.model.sight(features, columns, inner, angles, batch.climb.flatten(), batch.generated.flatten())
        shown = self.model.shown(columns, inner, angles)
        cell = batch.cell.flatten(0, 1)
        x, z = (cell[:, None, None, ::2] + around(columns, angles)).remainder(_MAP).unbind(-1)
        y = (cell[:, 1:2] + self._layers).remainder(_MAP)[:, None, None]
        place = (((x * _MAP + z) * _MAP)[..., None] + y).unflatten(0, (rows, frames))
        with self.profile.section("map"), torch.no_grad(), self.precision():
            # A player that stands still does not look again (`PredictedPlayers.observe`).
            told = ((asked > 0).unflatten(0, (rows, frames)) & batch.moved[..., None])[..., None, None]
            looks, reached = (one.unflatten(0, (rows, frames)) for one in (seen.detach(), shown))
            before = self._walk(looks, reached, place, told, known)
            forget(known, batch.cell[:, -1])
        with self.precision():
            after = self.model.update(seen, shown, before.flatten(0, 1))
        labels = batch.labels.flatten(0, 1).unflatten(1, (-1, LAYERS))
        border = surface_weight(batch.labels).view_as(labels)
        # Air and water beside the player are touched wherever they are.
        weight = torch.where(self._touched & (labels != SOLID), 1.0, border) * self._weight
        index = chosen[..., None].expand(-1, -1, LAYERS)
        labels, border, weight = (cells.gather(1, index) for cells in (labels, border, weight))
        judged = (asked > 0) & batch.moved.flatten()[:, None]
        weight = weight * judged[..., None]
        error = F.cross_entropy(after.flatten(0, 2), labels.flatten(), reduction="none").view_as(weight)
        touched = self._touched[chosen] & (border == 1.0) & judged[..., None]
        right, solid = after.detach().argmax(-1) == labels, labels == SOLID
        counts = torch.stack([(touched & mask).sum() for mask in (touched, right, solid, solid & right)]).float()
        return (error * weight).sum() / weight.sum(), counts

    def _walk(self, seen: Tensor, shown: Tensor, place: Tensor, told: Tensor, known: Tensor) -> Tensor:
        """What the map says before each frame; it is brought up to date.

        Args:
            seen: [B, T, Q, hidden].
            shown: bool [B, T, Q, LAYERS].
            place: int64 [B, T, Q, 1 + NEIGHBOURS, LAYERS], cells of the map.
            told: bool [B, T, Q, 1, 1], columns that the frame tells about.
            known: float32 [B, _MAP ** 3, 3].

        Returns:
            float32 [B, T, Q, 1 + NEIGHBOURS, LAYERS, 3].
        """
        maps = []
        for t in range(seen.shape[1]):
            index = place[:, t].flatten(1)[..., None].expand(-1, -1, CLASSES)
            before = known.gather(1, index).view(*place[:, t].shape, CLASSES)
            kept = torch.where(told[:, t], bounded(self.model.update(seen[:, t], shown[:, t], before)), before[:, :, 0])
            index = place[:, t, :, 0].flatten(1)[..., None].expand(-1, -1, CLASSES)
            known.scatter_(1, index, kept.flatten(1, 2))
            maps.append(before)
        return torch.stack(maps, 1)

    def after_step(self) -> None:
        """Take in new trajectories, and dream on."""
        if self._dreamer is not None:
            with self.profile.section("dream"):
                self._dreamer.step()
        with self.profile.section("refresh"):
            self.pool.refresh(self.config.data.refresh_ratio * self.frames_per_step)

    @torch.no_grad()
    def evaluate(self, rng: np.random.Generator) -> dict[str, float]:
        """Score the weights in place on held-out worlds, whose walks are followed from end to end.

        Returns:
            Of the cells that a walking player touches, where air and something meet: touched_accuracy, share that is
            right; touched_solid_accuracy, the same of solid ones; touched_solid, what always saying solid would score.
            And the cross_entropy.
        """
        if self._validation is None:
            episodes = self.stream.urgent_results()
            if not episodes:
                return {}
            self._validation = self._pool(None, sum(len(one.poses) for one in episodes))
            for one in episodes:
                self._validation._insert(one)
        pool, frames = self._validation, self.config.data.frames
        self.model.eval()
        losses, counts = [], torch.zeros(4, device=self._map.device)
        for part in np.array_split(np.arange(pool.count), max(1, -(-pool.count // self.config.data.batch))):
            known = self._empty_map(len(part))
            for start in range(0, pool.length - frames + 1, frames):
                loss, found = self._follow(pool.pieces(part, np.full(len(part), start), frames), known)
                losses.append(loss)
                counts += found
        self.model.train()
        judged, right, solid, solid_right = counts.tolist()
        return {
            "touched_accuracy": right / judged,
            "touched_solid_accuracy": solid_right / max(solid, 1.0),
            "touched_solid": solid / judged,
            "cross_entropy": float(torch.stack(losses).mean()),
        }

    def export(self, folder: Path) -> None:
        """Write the checkpoint of `init` with the weights in place as `pose.safetensors`."""
        with replacing_folder(folder) as fresh:
            for name in FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, fresh / name)
            save_pose(fresh, self.model)

    def close(self) -> None:
        """Stop the workers."""
        if self._dreamer is not None:
            self._dreamer.close()
        self.stream.close()


def forget(known: Tensor, cells: Tensor) -> None:
    """Clear what is far from the players, in place: their maps have no ends and would show it again where it is not.

    Args:
        known: float32 [B, _MAP ** 3, 3].
        cells: int64 [B, 3], where the players are.
    """
    span = torch.arange(_MAP, device=known.device)
    off = ((span - cells[..., None] + _MAP // 2).remainder(_MAP) - _MAP // 2).abs()  # [B, 3, _MAP]
    x, y, z = (off[:, axis] <= kept for axis, kept in enumerate((_KEPT[0], _KEPT[1], _KEPT[0])))
    near = x[:, :, None, None] & z[:, None, :, None] & y[:, None, None, :]
    known *= near.flatten(1)[..., None]


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


def disturbed(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, T, C, h, w] as a dream might show them: a share of the pieces gets noise, as many get blur.

    Returns:
        Latents; bool [B], which were changed.
    """
    rows = len(latents)
    shape = (rows, 1, 1, 1, 1)
    level = torch.rand(2, *shape, device=latents.device) * (torch.rand(2, *shape, device=latents.device) < _DISTURBED)
    flat = latents.flatten(0, 1)
    soft = F.avg_pool2d(flat, 3, 1, 1, count_include_pad=False).view_as(latents)
    latents = torch.lerp(latents, soft, _BLUR * level[0])
    return latents + _NOISE * level[1] * torch.randn_like(latents), (level > 0).any(0).flatten()
