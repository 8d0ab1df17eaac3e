"""Learning rate as a function of progress, where progress is driven by steps or by the clock."""

from __future__ import annotations

import math

from .config import OptimiserConfig


def progress_of(step: int, steps: int | None, elapsed: float, seconds: float | None) -> float:
    """Share of the run that is over: the larger of the share of steps and the share of time.

    Args:
        step: Steps done.
        steps: Steps in all, or None.
        elapsed: Seconds used so far, earlier pieces of the run included.
        seconds: Seconds in all, or None.

    Returns:
        0..1 (1 = done); 0 where neither limit is set.
    """
    shares = [0.0]
    if steps is not None:
        shares.append(step / max(steps, 1))
    if seconds is not None:
        shares.append(elapsed / max(seconds, 1e-9))
    return min(max(shares), 1.0)


def learning_rate(config: OptimiserConfig, step: int, progress: float) -> float:
    """Warm-up by steps, then cosine or trapezoid over the progress.

    Args:
        config: Peak, warm-up, shape.
        step: Steps done before this one.
        progress: 0..1.

    Returns:
        The rate of this step.
    """
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    if config.schedule == "cosine":
        share = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = min(1.0, (1.0 - progress) / max(config.cooldown, 1e-9))
        share = config.final + (1 - config.final) * left
    return config.lr * warm * share
