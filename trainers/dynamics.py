"""The dynamics stages: clips of latents, rectified flow under teacher forcing, next-frame scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decmem_env.model.changes import told_on_walk
from decmem_env.model.keyframes import any_beside, new_views
from decmem_env.model.nearest_views import Views, seen_on_walk
from decmem_env.model.voxel_rays import views
from torch import Tensor, nn

from decmem_env.metrics import sharpness

from .adversarial import Adversary
from .config import ConfigError, TrainConfig
from .data.latents import ClipBatch, LatentPool, make_batch
from .data.own_context import ClipRing, TurningClips
from .data.sources import open_stream
from .data.splice import revisit_table, sample_clip
from .data.voxel import EpisodeRenderer
from .distributed import Ranks
from .models import (
    build_transformer,
    find_export,
    load_autoencoder,
    load_transformer_weights,
    save_dynamics,
    weights_number,
)
from .objective import (
    clean_prediction,
    flow_loss,
    one_step_prediction,
    rollout_prediction,
    run_model,
    sample_inputs,
)
from .precision import autocast_of
from .profiling import Profile
from .scores import psnr_per_frame, revisit_kinds

_EVALUATION_ROUNDS = 12
LATE = 0.7  # flow time below which a sampler of several steps has settled what a new view shows


class DynamicsTask:
    """What the trainer needs to train `WorldTransformer`.

    Args:
        config: Resolved settings.
        ranks: This process.
        init: Folder of an autoencoder run (first stage) or of an earlier dynamics stage.
        profile: Section timer.

    Raises:
        ConfigError: No `init`, or it holds no autoencoder.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, init: str | None, profile: Profile) -> None:
        self.config, self.ranks, self.profile = config, ranks, profile
        if init is None:
            raise ConfigError(
                f"stage {config.stage} needs --init: the folder of an autoencoder run, or of an earlier dynamics stage"
            )
        folder = find_export(init)
        device = ranks.device
        self.autoencoder = load_autoencoder(folder)
        self.codec = load_autoencoder(folder).to(device).eval().requires_grad_(False)
        if device.type == "cuda":
            self.codec = self.codec.half()
        self.model: Any
        self.model_config, self.model = build_transformer(folder, config.model, self.autoencoder.config)
        self.model.to(device)
        self._salt = weights_number(folder) if load_transformer_weights(folder, self.model) else 0
        self.module: nn.Module = self.model
        if config.run.compile and device.type == "cuda" and hasattr(self.model, "compile_blocks"):
            self.model.compile_blocks()
        size = self.autoencoder.config
        self.renderer = EpisodeRenderer(size.height, size.width, device)
        self.frames_per_step = config.data.batch * config.data.frames * ranks.size
        self.precision = autocast_of(config, device)
        self._ring: ClipRing | None = None
        if config.objective.new_view_noise is not None and not self.model_config.keyframe_blocks:
            raise ConfigError(
                "objective.new_view_noise needs model.keyframe_blocks above 0: it says which views are new"
            )
        share, channels = config.objective.adversarial, size.latent_shape[0]
        self.adversary = Adversary(share, channels, ranks, self.precision) if share > 0 else None

    def open(self, data: dict[str, Any]) -> None:
        """Start the data workers; `data` is the position of a resumed run."""
        exact = self.config.data.workers == 0
        size = (self.autoencoder.config.height, self.autoencoder.config.width)
        first = 0 if exact else data.get("job", 0)
        self.stream = open_stream(self.config, self.ranks, size, first, self._salt)
        settings = self.config.data
        self.pool = LatentPool(
            self.stream,
            self.renderer,
            self.codec.encode,
            settings.pool_episodes,
            settings.episode_frames,
            self.autoencoder.config.latent_shape,
        )
        if exact:
            self.pool.replay(data.get("added", 0), data.get("allowance", 0.0))

    def fill(self) -> None:
        """Wait for the first trajectories."""
        self.pool.fill(self.config.data.min_fill)

    def position(self) -> dict[str, Any]:
        """Position in the data."""
        return {"job": self.stream.next_job, "added": self.pool.added, "allowance": self.pool.allowance}

    def next_batch(self, rng: np.random.Generator) -> TurningClips:
        """Clips of one step. A resumed run starts with fresh ones."""
        data, objective = self.config.data, self.config.objective
        if self._ring is None:
            keep = objective.self_context > 0

            def sample() -> ClipBatch:
                batch = self.pool.sample(data, rng)
                return batch if objective.new_view_noise is None else self._with_new_views(batch)

            rounds, groups = (objective.self_context_rounds, objective.self_context_groups) if keep else (1, 1)
            self._ring = ClipRing(sample, groups, rounds, objective.self_context, self._as_in_sessions)
        with self.profile.section("sample"):
            return self._ring.next()

    def _with_new_views(self, batch: ClipBatch) -> ClipBatch:
        new = np.stack([new_views(poses, self.model_config) for poses in batch.poses])
        return replace(batch, new=torch.from_numpy(new).to(batch.latents.device))

    def _as_in_sessions(self, batch: ClipBatch, own: Tensor | None = None) -> ClipBatch:
        """A batch whose frames see, and are told, what a session's would, where those of `own` are the model's."""
        config = self.model_config
        if not config.voxel_hands and not config.nearest_views:
            return batch
        actions = batch.actions.cpu().numpy()
        dreamed = np.zeros(batch.poses.shape[:2], np.bool_) if own is None else own.cpu().numpy()
        walks = [Views.of(*row) for row in zip(batch.poses, actions, dreamed, batch.cells, strict=True)]
        if config.voxel_hands:
            told = np.stack([told_on_walk(walk.changes, walk.poses, config.voxel_changes) for walk in walks])
            batch = replace(batch, view=torch.from_numpy(views(batch.poses, batch.cells, told)).to(batch.view))
        if not config.nearest_views:
            return batch
        # One more than `nearest_views`: the dreamed frame that shows a change.
        seen = np.zeros((*batch.poses.shape[:2], config.nearest_views + 1), np.int32)
        counts = np.full(batch.poses.shape[:2], -1, np.int32)
        unseen = np.zeros(counts.shape, np.bool_)
        hidden = np.zeros(counts.shape) if batch.hidden is None else batch.hidden
        for row, walk in enumerate(walks):
            for t, chosen in enumerate(seen_on_walk(walk, config, hidden[row])):
                if chosen is not None:
                    seen[row, t, : len(chosen)], counts[row, t] = chosen, len(chosen)
                    unseen[row, t] = hidden[row, t] > 0.0 and not any_beside(walk.poses[chosen], walk.poses[t], config)
        device = batch.latents.device
        new = None if batch.new is None else batch.new | torch.from_numpy(unseen).to(device)
        return replace(batch, new=new, seen=(torch.from_numpy(seen).to(device), torch.from_numpy(counts).to(device)))

    def loss(self, clips: TurningClips, rng: np.random.Generator) -> Tensor:
        """Flow loss of one batch; its own predictions become context of the batch's next round."""
        objective = self.config.objective
        new = clips.batch.new
        inputs = sample_inputs(clips.batch.latents, objective, clips.context, clips.generated, new)
        with self.precision():
            velocity = run_model(self.model, clips.batch, inputs, objective.attention)
        # Only from pure noise is the prediction what a session would generate in one step; of new views, from any.
        made = late = inputs.time == 1.0
        if new is not None:
            made, late = made | new, torch.where(new, inputs.time < LATE, late)
        if objective.self_context > 0:
            clips.take(clean_prediction(velocity, inputs), made & inputs.action_mask, new)
        flow = flow_loss(velocity, inputs, objective, clips.batch.changed)
        if self.adversary is None:
            return flow
        with self.profile.section("adversary"):
            return self.adversary.add(flow, velocity, inputs, clips.batch.latents, late & inputs.action_mask)

    def after_step(self) -> None:
        """Render and encode new trajectories in proportion to the frames trained."""
        data = self.config.data
        with self.profile.section("render+encode"):
            self.pool.refresh(data.refresh_ratio * data.batch * data.frames)

    def evaluate(self, rng: np.random.Generator) -> dict[str, float]:
        """Score spliced clips of held-out worlds, over their later half.

        Returns:
            val_loss (fixed noise); psnr_db of the next frame, predicted in one step from the true past; own_db of the
            same frames predicted from the model's own (`rollout_prediction`); bound_db (the autoencoder); copy_db (the
            previous frame); own_sharpness of the former over that of the decoded truth; and all but copy_db as exact_*
            and near_* over frames that only memory beyond the last 8 frames can know.
        """
        data, device = self.config.data, self.ranks.device
        fixed = np.random.default_rng(7)
        losses, rows = [], []
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(7)
            for truth, batch in self._validation_batches(fixed):
                late_own = torch.arange(data.frames) >= data.frames // 2
                dreamt_batch = self._as_in_sessions(batch, late_own.expand(len(batch.poses), -1))
                batch = self._as_in_sessions(batch)
                inputs = sample_inputs(batch.latents, self.config.objective)
                with self.precision():
                    velocity = run_model(self.model, batch, inputs, self.config.objective.attention).detach()
                    predicted = one_step_prediction(self.model, batch, self.config.objective.attention)
                    rollout = rollout_prediction(
                        self.model, dreamt_batch, self.config.objective.attention, data.frames // 2, _EVALUATION_ROUNDS
                    )
                losses.append(float(flow_loss(velocity, inputs, self.config.objective)))
                for row, frames in enumerate(truth):
                    frames = frames.to(device)
                    kinds = revisit_kinds(batch.poses[row])[data.frames // 2 :]
                    late = slice(data.frames // 2, None)
                    guess = psnr_per_frame(self.codec.decode(predicted[row, late]), frames[late])
                    dreamt, decoded = self.codec.decode(rollout[row, late]), self.codec.decode(batch.latents[row, late])
                    own, bound = psnr_per_frame(dreamt, frames[late]), psnr_per_frame(decoded, frames[late])
                    copy = psnr_per_frame(frames[data.frames // 2 - 1 : -1], frames[late])
                    scores = (guess, own, bound, copy, sharpness(dreamt), sharpness(decoded))
                    rows.append(np.stack([*(s.cpu().numpy() for s in scores), kinds], 1))
        if not rows:
            return {}
        table = np.concatenate(rows)
        result = {"val_loss": float(np.mean(losses))}
        names = ("psnr_db", "own_db", "bound_db", "copy_db")
        result |= dict(zip(names, map(float, table[:, :4].mean(0)), strict=True))
        result["own_sharpness"] = _sharpness_ratio(table)
        for name, kind in (("near", 1), ("exact", 2)):
            chosen = table[table[:, 6] == kind]
            result[f"{name}_frames"] = float(len(chosen))
            if len(chosen):
                result |= {f"{name}_{n}": float(chosen[:, k].mean()) for k, n in enumerate(names[:3])}
                result[f"{name}_own_sharpness"] = _sharpness_ratio(chosen)
        return result

    def _validation_batches(self, rng: np.random.Generator) -> Any:
        """Yield (uint8 frames [T, H, W, 3] of each clip, full batch); short batches repeat their last clip."""
        data = self.config.data
        clips = []
        for episode in self.stream.urgent_results():
            frames = self.renderer.frames(episode)
            for i in range(len(frames)):
                poses = episode.poses[i]
                index = sample_clip(revisit_table(poses), len(poses), data.frames, 1.0, rng)
                clips.append(
                    (
                        frames[i][torch.from_numpy(index).to(frames.device)],
                        episode.actions[i][index],
                        poses[index],
                        index,
                    )
                )
        for start in range(0, len(clips), data.batch):
            group = clips[start : start + data.batch]
            full = [*group, *[group[-1]] * (data.batch - len(group))]
            latents = torch.stack([self.codec.encode(clip[0]) for clip in full])
            batch = make_batch(latents, *(np.stack([clip[k] for clip in full]) for k in (1, 2, 3)))
            yield [clip[0] for clip in group], batch

    def export(self, folder: Path) -> None:
        """Write config, transformer (weights in place) and autoencoder."""
        save_dynamics(folder, self.model_config, self.model, self.autoencoder)

    def close(self) -> None:
        """Stop the workers."""
        self.stream.close()


def _sharpness_ratio(table: np.ndarray) -> float:
    """Mean sharpness in column 4 over that in column 5."""
    return float(table[:, 4].mean() / max(table[:, 5].mean(), 1e-9))
