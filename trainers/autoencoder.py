"""The autoencoder stage: fresh random frames every step, reconstruction losses, statistics of the latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decmem_env.model.autoencoder import AutoencoderConfig, TinyAutoencoder, to_pixels
from torch import Tensor, nn

from .config import ConfigError, ObjectiveConfig, TrainConfig
from .data.frames import FramePool
from .data.sources import open_stream
from .data.stream import Episodes
from .data.voxel import EpisodeRenderer
from .distributed import Ranks
from .models import find_export, load_autoencoder, save_autoencoder, widen_latents
from .precision import autocast_of
from .profiling import Profile
from .scores import psnr_per_frame, summarise

_EVALUATION_FRAMES = 64  # of each validation world
_CALIBRATION_BATCHES = 16


def reconstruction_loss(output: Tensor, pixels: Tensor, config: ObjectiveConfig) -> Tensor:
    """l1 |e| + l2 e^2 + gradient (|dx e| + |dy e|) / 2, pixels in [-1, 1]."""
    error = output.float() - pixels.float()
    dx, dy = error[..., :, 1:] - error[..., :, :-1], error[..., 1:, :] - error[..., :-1, :]
    edges = 0.5 * (dx.abs().mean() + dy.abs().mean())
    return config.l1 * error.abs().mean() + config.l2 * error.square().mean() + config.gradient * edges


class AutoencoderTask:
    """What the trainer needs to train `TinyAutoencoder`.

    Args:
        config: Resolved settings.
        ranks: This process.
        init: Folder of an earlier run or export to start from, or None.
        profile: Section timer.
    """

    adversary = None

    def __init__(self, config: TrainConfig, ranks: Ranks, init: str | None, profile: Profile) -> None:
        self.config, self.ranks, self.profile = config, ranks, profile
        changes = dict(config.autoencoder)
        preset = changes.pop("preset", "tiny")
        if preset not in ("tiny", "debug"):
            raise ConfigError(f"autoencoder.preset={preset!r}: choose tiny or debug")
        sizes = {**getattr(AutoencoderConfig, preset)().__dict__, **changes}
        self.model = TinyAutoencoder(AutoencoderConfig.from_dict(sizes)).to(ranks.device)
        if init is not None:
            self._start_from(load_autoencoder(find_export(init)), init)
        self.module: nn.Module = self.model
        self._forward = self.model.forward
        if config.run.compile and ranks.device.type == "cuda":
            self._forward = torch.compile(self.model.forward, dynamic=False)
        self.renderer = EpisodeRenderer(self.model.config.height, self.model.config.width, ranks.device)
        self.frames_per_step = config.data.batch * ranks.size
        self.precision = autocast_of(config, ranks.device)
        self._validation: list[Episodes] | None = None

    def _start_from(self, loaded: TinyAutoencoder, init: str) -> None:
        """Take over weights; latents may have become wider, and the noise on them may change."""
        have, want = loaded.config, self.model.config
        alike = replace(have, latent_channels=want.latent_channels, latent_noise=want.latent_noise)
        if alike != want or have.latent_channels > want.latent_channels:
            raise ConfigError(
                f"{init} holds an autoencoder of other sizes: drop --init or the autoencoder.* settings "
                "(only latent_noise may change and latent_channels may grow)"
            )
        self.model.load_state_dict(widen_latents(loaded.state_dict(), self.model.state_dict()))

    def open(self, data: dict[str, Any]) -> None:
        """Start the data workers; `data` is the position of a resumed run."""
        exact = self.config.data.workers == 0
        size = (self.model.config.height, self.model.config.width)
        self.stream = open_stream(self.config, self.ranks, size, first=0 if exact else data.get("job", 0))
        self.pool = FramePool(self.stream, self.renderer, self.config.data.pool_worlds)
        if exact:
            self.pool.replay(data.get("added", 0))

    def fill(self) -> None:
        """Wait for the first worlds."""
        self.pool.fill(self.config.data.min_fill)

    def position(self) -> dict[str, Any]:
        """Position in the data."""
        return {"job": self.stream.next_job, "added": self.pool.added}

    def next_batch(self, rng: np.random.Generator) -> Tensor:
        """Frames of one step, uint8 [N, H, W, 3]."""
        with self.profile.section("render"):
            return self.pool.sample(self.config.data.batch, rng)

    def loss(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """Reconstruction loss of one batch."""
        pixels = to_pixels(frames)
        with self.precision():
            output, _ = self._forward(pixels)
        return reconstruction_loss(output, pixels, self.config.objective)

    def after_step(self) -> None:
        """Take in new worlds."""
        with self.profile.section("refresh"):
            self.pool.refresh(self.config.data.refresh_ratio)

    @torch.no_grad()
    def evaluate(self, rng: np.random.Generator) -> dict[str, float]:
        """Calibrate the latent statistics for the weights in place, then score held-out frames.

        Returns:
            psnr_db (mean over frames), worst_decile_db, frames.
        """
        norm = self.model.latent_norm
        momentum = norm.momentum
        self.model.train()
        for k in range(_CALIBRATION_BATCHES):
            norm.momentum = 1.0 / (k + 1)
            self.model.encode_float(to_pixels(self.pool.sample(self.config.data.batch, rng)))
        norm.momentum = momentum
        self.model.eval()
        if self._validation is None:
            self._validation = self.stream.urgent_results()
        scores = []
        for episode in self._validation:
            frames = self.renderer.frames(episode).flatten(0, 1)
            frames = frames[:: max(1, len(frames) // _EVALUATION_FRAMES)]
            scores.append(psnr_per_frame(self.model.decode(self.model.encode(frames)), frames))
        self.model.train()
        return summarise(torch.cat(scores).cpu().numpy()) if scores else {}

    def export(self, folder: Path) -> None:
        """Write the weights in place as `autoencoder.safetensors`."""
        save_autoencoder(folder, self.model)

    def close(self) -> None:
        """Stop the workers."""
        self.stream.close()
