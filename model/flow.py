"""Rectified flow (DecMem section 3): noising, samplers and action guidance.

Flow time 0 is clean and 1 is noise: z_t = (1 - t) z_0 + t eps, with velocity eps - z_0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Mix latents [..., C, h, w] with noise at flow times [...]."""
    t = time[..., None, None, None].to(latents.dtype)
    return (1.0 - t) * latents + t * noise


def clean_estimate(noisy: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
    """z_0 = z_t - t * velocity."""
    return noisy - time[..., None, None, None].to(noisy.dtype) * velocity


def schedule(steps: int) -> list[float]:
    """Flow times at which the model is called, from 1 down: evenly spaced."""
    if steps < 1:
        raise ValueError(f"sampler steps is {steps}: expected at least 1")
    return [1.0 - i / steps for i in range(steps)]


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Action guidance, eq. 14: v(none) + scale * (v(action) - v(none))."""
    return unconditional + scale * (conditional - unconditional)


def sample(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler steps from noise to a clean latent; one step gives the conditional mean.

    Args:
        velocity: (z_t, t) -> velocity, same shape.
        noise: z_1.
        steps: Number of model calls.

    Returns:
        z_0.
    """
    times = [*schedule(steps), 0.0]
    state = noise
    for now, then in zip(times[:-1], times[1:], strict=True):
        state = state - (now - then) * velocity(state, now)
    return state


def session_noise(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of one session, drawn on the CPU so that it does not depend on device or batch."""
    return torch.randn(shape, generator=generator)
