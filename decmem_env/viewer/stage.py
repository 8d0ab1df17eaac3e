"""The true voxel world behind both sources: physics, pictures, edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.actions import noop, parse_action_string
from ..tour import FRAMES, TOUR, plan_tour
from ..worlds import Renderer, Simulator, generate_world
from ..worlds.hands import Edit
from .source import Progress

_AT_ONCE = 16  # frames


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
        return self._pictures(pose[None])[0]

    def _pictures(self, poses: NDArray[np.float64]) -> NDArray[np.uint8]:
        blocks = torch.from_numpy(np.ascontiguousarray(self.simulator.blocks))
        made = self._renderer.render(blocks, torch.zeros(len(poses), dtype=torch.int64), poses)
        return made.rgb.cpu().numpy()

    def opening(
        self, script: str, progress: Progress
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]:
        """Follow an action string from the spawn.

        Args:
            script: See `conventions.actions.parse_action_string`; or `TOUR`, a tour of the neighbourhood.
            progress: Told of every few frames.

        Returns:
            Frames uint8 [C, H, W, 3], actions float32 [C, 25] (the first does nothing), poses float64 [C, 5].
        """
        if script == TOUR:
            actions = plan_tour(self.simulator.worlds[0], self.pose, FRAMES)
        else:
            actions = np.concatenate([noop()[None], parse_action_string(script)])
        poses = np.stack([self.pose] + [self.move(action) for action in actions[1:]])
        parts: list[NDArray[np.uint8]] = []
        for start in range(0, len(poses), _AT_ONCE):
            parts.append(self._pictures(poses[start : start + _AT_ONCE]))
            progress("looking around", start + len(parts[-1]), len(poses), parts[-1][-1])
        return np.concatenate(parts), actions, poses

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
