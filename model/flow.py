"""Rectified flow (DecMem section 3): noising, samplers and action guidance.

Flow time 0 is clean and 1 is noise: z_t = (1 - t) z_0 + t eps, with velocity eps - z_0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Mix latents [..., C, h, w] with noise at flow times [...]."""
    t = time[..., None, None, None].to(latents.dtype)
    return (1.0 - t) * latents + t * noise


def clean_estimate(noisy: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
    """z_0 = z_t - t * velocity."""
    return noisy - time[..., None, None, None].to(noisy.dtype) * velocity


def schedule(steps: int, shift: float = 1.0) -> list[float]:
    """Flow times at which the model is called, from 1 down: evenly spaced, then shifted towards noise.

    Args:
        steps: How many.
        shift: t' = shift t / (1 + (shift - 1) t); 1 leaves them where they are. Wan and Self-Forcing use 5.
    """
    if steps < 1:
        raise ValueError(f"sampler steps is {steps}: expected at least 1")
    even = [1.0 - i / steps for i in range(steps)]
    return [shift * t / (1.0 + (shift - 1.0) * t) for t in even]


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Action guidance, eq. 14: v(none) + scale * (v(action) - v(none))."""
    return unconditional + scale * (conditional - unconditional)


def advance(state: Tensor, velocity: Tensor, now: float, then: float, fresh: Tensor | None = None) -> Tensor:
    """One sampler step from flow time `now` to `then` (0 ends).

    Args:
        state: z_now.
        velocity: At z_now.
        now: Flow time of the state.
        then: Flow time to reach.
        fresh: Noise to mix with the predicted clean latent (consistency style); None for an Euler step.

    Returns:
        z_then. A single step from 1 to 0 gives the conditional mean either way.
    """
    if fresh is None or then == 0.0:
        return state - (now - then) * velocity
    return (1.0 - then) * (state - now * velocity) + then * fresh


def session_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one session, drawn on the CPU so that it does not depend on device or batch."""
    return torch.randn(shape, generator=generator)
