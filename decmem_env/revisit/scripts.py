"""What is walked: scripted trajectories with a context to remember and a part to generate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("turn_away", "aba", "abca", "look360", "loop")


@dataclass(frozen=True, eq=False)
class Script:
    """One trajectory of T frames through one world.

    Attributes:
        kind: One of `KINDS`, or `long_run`.
        world: Seed of the world.
        grid: Whether angles and steps stay on the grid of poses.
        context: Number of true frames the model observes; the rest is generated.
        actions: float32 [T, 25].
        poses: float64 [T, 5].
        noise_seed: Seed of the model's noise generator.
    """

    kind: str
    world: int
    grid: bool
    context: int
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    noise_seed: int = 0

    @property
    def generated(self) -> int:
        """Number of frames to generate."""
        return len(self.poses) - self.context
