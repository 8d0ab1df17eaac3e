"""The true voxel world behind both sources: physics, pictures, edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.actions import noop, parse_action_string
from ..worlds import Renderer, Simulator, generate_world
from ..worlds.hands import Edit


class Stage:
    """One voxel world with one player in it."""

    def __init__(self, seed: int, height: int = 96, width: int = 160) -> None:
        """Build the world of a seed; the player stands at its spawn."""
        self.seed = seed
        self.simulator = Simulator([generate_world(seed)])
        self._renderer = Renderer(height=height, width=width)

    @property
    def pose(self) -> NDArray[np.float64]:
        """Pose of the player, float64 [5]."""
        return np.array(self.simulator.poses[0], np.float64)

    def move(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Let the player act for one tick (0.1 s); returns its pose."""
        self.simulator.step(action[None])
        return self.pose

    @property
    def touched(self) -> NDArray[np.float64]:
        """The cell (x, y, z) that the player's hand changed in its last tick, float64 [3]; NaN: none."""
        return self.simulator.touched[0].copy()

    def place_player(self, pose: NDArray[np.float64]) -> None:
        """Put the player somewhere."""
        self.simulator.teleport(0, pose)

    def picture(self, pose: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The true world (with its edits) from a pose, uint8 [H, W, 3]."""
        blocks = torch.from_numpy(np.ascontiguousarray(self.simulator.blocks))
        made = self._renderer.render(blocks, torch.zeros(1, dtype=torch.int64), pose[None])
        return made.rgb[0].cpu().numpy()

    def opening(self, script: str) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]:
        """Follow an action string from the spawn.

        Args:
            script: See `conventions.actions.parse_action_string`.

        Returns:
            Frames uint8 [C, H, W, 3], actions float32 [C, 25] (the first does nothing), poses float64 [C, 5].
        """
        actions = np.concatenate([noop()[None], parse_action_string(script)])
        poses = [self.pose] + [self.move(action) for action in actions[1:]]
        return np.stack([self.picture(pose) for pose in poses]), actions, np.stack(poses)

    def save(self, folder: Path) -> None:
        """Write the simulator's state to `stage.npz`."""
        state = self.simulator.snapshot()
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in state.items()}
        np.savez_compressed(folder / "stage.npz", **arrays)

    def load(self, folder: Path) -> None:
        """Read the state back."""
        with np.load(folder / "stage.npz", allow_pickle=False) as arrays:
            state: dict[str, Any] = dict(arrays)
        state["edits"] = [Edit(*row) for row in state["edits"].reshape(-1, len(Edit._fields)).tolist()]
        self.simulator.restore(state)
