"""A voxel world to start a session from: true frames along an action script, and a walk that comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .conventions.actions import noop, parse_action_string
from .conventions.poses import is_exact

LOOK_AROUND = "L*24"  # 24 turns of 15 degrees: once around


@dataclass(frozen=True, eq=False)
class Footage:
    """True frames with what led to them.

    Attributes:
        frames: uint8 [T, H, W, 3].
        actions: float32 [T, 25].
        poses: float64 [T, 5].
        depth: float32 [T, H, W], blocks.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    depth: NDArray[np.float32]


class Scene:
    """One voxel world at one frame size."""

    def __init__(self, seed: int, height: int, width: int, device: str = "cpu") -> None:
        """Build the world of a seed (deterministic)."""
        from .worlds import Renderer, generate_world

        self.world = generate_world(seed)
        self.renderer = Renderer(height=height, width=width, device=device)
        self.blocks = torch.as_tensor(self.world.blocks)[None].to(device)

    @property
    def spawn(self) -> NDArray[np.float64]:
        """Pose at which players start, [5]."""
        return np.asarray(self.world.spawn, np.float64)

    def walk(self, actions: NDArray[np.float32], start: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Poses after each action under the true physics, from `start` (the spawn when None), float64 [T, 5]."""
        return self.walk_many(actions[None], np.asarray(self.spawn if start is None else start)[None])[0]

    def walk_many(self, actions: NDArray[np.float32], starts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Same for n players that do not see each other: actions [n, T, 25], starts [n, 5], poses [n, T, 5]."""
        from .worlds import Simulator

        simulator: Any = Simulator([self.world] * len(actions))
        for i, start in enumerate(starts):
            simulator.teleport(i, start)
        return np.ascontiguousarray(simulator.walk(actions.swapaxes(0, 1)).swapaxes(0, 1))

    def film(self, actions: NDArray[np.float32], poses: NDArray[np.float64]) -> Footage:
        """Render the truth at given poses."""
        made = self.renderer.render(self.blocks, np.zeros(len(poses), np.int64), poses, depth=True)
        assert made.depth is not None
        return Footage(made.rgb.cpu().numpy(), actions, poses, made.depth.cpu().numpy())

    def return_trip(self, steps: int = 20) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
        """A-B-A on the grid of poses: look around at A, walk to B, look around, step back to A, look around.

        All 24 headings are tried; the one that gets furthest and comes back to the very same place wins.

        Args:
            steps: Walking steps from A to B.

        Returns:
            actions [T, 25], poses [T, 5], and the number of frames until the way back begins (the context).
        """
        there = parse_action_string(f"{LOOK_AROUND} W*{steps} {LOOK_AROUND}")
        back = parse_action_string(f"S*{steps} {LOOK_AROUND}")
        actions = np.concatenate([noop()[None], there, back])
        starts = np.repeat(self.spawn[None], 24, 0)
        starts[:, 4] += 15.0 * np.arange(24)
        poses = self.walk_many(np.repeat(actions[None], 24, 0), starts)
        context = 1 + len(there)
        reach = np.linalg.norm(poses[:, context - 1, :3] - poses[:, 0, :3], axis=-1)
        returned = np.array([is_exact(path[-1], path[0]) for path in poses])
        best = int(np.argmax(reach + 1000.0 * returned))
        return actions, poses[best], context
