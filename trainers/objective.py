"""The dynamics objective: rectified flow under teacher forcing, with a slightly noised context.

Flow time 0 is clean, 1 is noise: z_t = (1 - t) z_0 + t eps, velocity eps - z_0 (DecMem section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .data.latents import ClipBatch


@dataclass
class FlowInputs:
    """What one teacher-forced pass sees.

    Attributes:
        context: [B, T, C, h, w] clean half, partly noised.
        context_time: [B, T] its flow times, which the model is told.
        noisy: [B, T, C, h, w] noisy half.
        time: [B, T] its flow times.
        target: [B, T, C, h, w] velocity.
        action_mask: bool [B, T], False where the action is dropped from the noisy half.
        generated: bool [B, T], where the context holds the model's own frames.
    """

    context: Tensor
    context_time: Tensor
    noisy: Tensor
    time: Tensor
    target: Tensor
    action_mask: Tensor
    generated: Tensor


def mix(latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Noise latents [B, T, C, h, w] to flow times [B, T]."""
    t = time[..., None, None, None]
    return (1.0 - t) * latents + t * noise


def sample_times(
    shape: tuple[int, ...], config: ObjectiveConfig, device: torch.device, new: Tensor | None = None
) -> Tensor:
    """Flow times of the noisy half: 1 with probability `pure_noise`, else 1 - sigmoid(N(mean, std)).

    Args:
        shape: (B, T).
        config: Distributions.
        device: Where.
        new: bool [B, T], frames whose probability is `new_view_noise` instead; None: nowhere.
    """
    clean_share = torch.sigmoid(config.time_mean + config.time_std * torch.randn(shape, device=device))
    pure = torch.rand(shape, device=device)
    if new is None or config.new_view_noise is None:
        pure = pure < config.pure_noise
    else:
        pure = pure < torch.where(new, config.new_view_noise, config.pure_noise)
    return torch.where(pure, torch.ones_like(clean_share), 1.0 - clean_share)


def noise_context(latents: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Noise a share of the context frames by a random small amount.

    Returns:
        (context [B, T, C, h, w], its flow times [B, T]).
    """
    shape, device = latents.shape[:2], latents.device
    chosen = torch.rand(shape, device=device) < config.context_noise_share
    time = torch.rand(shape, device=device) * config.context_noise * chosen
    return mix(latents, torch.randn_like(latents), time), time


def sample_inputs(
    latents: Tensor,
    config: ObjectiveConfig,
    context: Tensor | None = None,
    generated: Tensor | None = None,
    new: Tensor | None = None,
) -> FlowInputs:
    """Draw noise and times for a batch.

    Args:
        latents: [B, T, C, h, w], clean: the target.
        config: Distributions.
        context: Context before noising if it differs from `latents`.
        generated: bool [B, T], where that context holds the model's own frames; None: nowhere.
        new: bool [B, T], frames that show something new; None: nowhere.
    """
    time = sample_times(tuple(latents.shape[:2]), config, latents.device, new)
    noise = torch.randn_like(latents)
    noised, context_time = noise_context(latents if context is None else context, config)
    keep = torch.rand(latents.shape[:2], device=latents.device) >= config.action_dropout
    own = torch.zeros_like(keep) if generated is None else generated
    return FlowInputs(noised, context_time, mix(latents, noise, time), time, noise - latents, keep, own)


def run_model(model: Any, batch: ClipBatch, inputs: FlowInputs, attention: str) -> Tensor:
    """One teacher-forced pass; velocity [B, T, C, h, w]."""
    return model.teacher_forcing(
        inputs.context,
        inputs.noisy,
        inputs.context_time,
        inputs.time,
        batch.actions,
        batch.projective,
        batch.projective_inverse,
        batch.frame_index,
        action_mask=inputs.action_mask,
        generated=inputs.generated,
        view=batch.view,
        attention=attention,
        seen=batch.seen,
    )


def flow_loss(velocity: Tensor, inputs: FlowInputs, config: ObjectiveConfig, changed: Tensor | None = None) -> Tensor:
    """Mean squared velocity error, with the frames and cells weighted as the settings say.

    Frames are weighted by 1, by t^2 (then it is the error of the clean latent) or by 1 / (own error + `log_floor`): the
    gradient of the mean log error, hence of the mean PSNR, which favours what memory can know over what must be
    guessed. Weights of frames are divided by their mean over the batch.

    Args:
        velocity: [B, T, C, h, w].
        inputs: What the pass saw, and the target.
        config: `weight`, `log_floor`, `edit_weight`.
        changed: bool [B, T, h, w], cells whose error counts `edit_weight` times.
    """
    error = (velocity.float() - inputs.target).square().mean(2)
    plain = error.detach().mean((2, 3))
    if changed is not None:
        error = error * (1.0 + (config.edit_weight - 1.0) * changed)
    frames = error.mean((2, 3))
    if config.weight == "velocity":
        return frames.mean()
    scale = inputs.time.square() if config.weight == "x0" else 1.0 / (plain + config.log_floor)
    return (frames * scale).mean() / scale.mean()


def clean_prediction(velocity: Tensor, inputs: FlowInputs) -> Tensor:
    """The clean latents that a pass implies, z_t - t v, fp32 [B, T, C, h, w], detached."""
    return inputs.noisy - inputs.time[..., None, None, None] * velocity.detach().float()


def one_step_prediction(
    model: Any, batch: ClipBatch, attention: str, context: Tensor | None = None, own_from: int | None = None
) -> Tensor:
    """Every frame predicted in one step from pure noise and its past, fp32 [B, T, C, h, w], detached.

    The pass runs with gradients recorded and dropped at once, so that it shares the compiled graph of the training
    pass instead of compiling a second one.

    Args:
        model: The transformer.
        batch: Clips.
        attention: "memory" or "dense".
        context: Past to predict from, if not the true one.
        own_from: First frame of that past that the model generated itself; None: all are true.
    """
    latents = batch.latents
    shape, device = latents.shape[:2], latents.device
    frames = torch.arange(shape[1], device=device).expand(shape)
    noise = torch.randn_like(latents)
    inputs = FlowInputs(
        latents if context is None else context,
        torch.zeros(shape, device=device),
        noise,
        torch.ones(shape, device=device),
        noise,
        torch.ones(shape, dtype=torch.bool, device=device),
        frames >= (shape[1] if own_from is None else own_from),
    )
    return clean_prediction(run_model(model, batch, inputs, attention), inputs)


def rollout_prediction(model: Any, batch: ClipBatch, attention: str, start: int, rounds: int) -> Tensor:
    """Free-running prediction of the frames from `start` on, approached by Jacobi iteration.

    Round r predicts all frames at once from round r - 1; frame start + i is exact after i + 1 rounds.

    Returns:
        fp32 [B, T, C, h, w]; the frames before `start` are the true ones.
    """
    context = batch.latents
    for number in range(rounds):
        predicted = one_step_prediction(model, batch, attention, context, start if number else None)
        context = torch.cat([batch.latents[:, :start], predicted[:, start:]], 1)
    return context
