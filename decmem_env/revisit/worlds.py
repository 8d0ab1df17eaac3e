"""The voxel worlds of a test: built once, shared by all scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class WorldSet:
    """Worlds by seed.

    Attributes:
        seeds: In the order given.
        worlds: `worlds.World` by seed.
        blocks: uint8 [X, Z, Y] by seed.
    """

    def __init__(self, seeds: Sequence[int], progress: Callable[[int], None] | None = None) -> None:
        """Generate; `progress` is called once a world."""
        from ..worlds import generate_world

        self.seeds = list(seeds)
        self.worlds: dict[int, Any] = {}
        for seed in self.seeds:
            self.worlds[seed] = generate_world(seed)
            if progress is not None:
                progress(1)
        self.blocks = {seed: torch.as_tensor(world.blocks) for seed, world in self.worlds.items()}

    def renderer(self, height: int, width: int, device: str) -> Any:
        """A renderer of these worlds at a frame size."""
        from ..worlds import Renderer

        return Renderer(height=height, width=width, device=device)
