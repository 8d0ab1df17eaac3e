"""`DecMem-Voxel-v0`: the true voxel world behind the same spaces, tasks and options as the dream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .env import RowEnv
from .predicted_player import PredictedPoses
from .rows import Row, Rows
from .start import Start
from .vector import RowVectorEnv
from .worlds import Renderer, Simulator


class _Slot:
    """A player's place in the stack of worlds on the renderer's device."""

    def __init__(self, index: int, simulator: Simulator) -> None:
        self.index, self.simulator, self.edits = index, simulator, len(simulator.edits)


class Truth:
    """Backend that renders the voxel worlds its players stand in.

    Args:
        height: Pixels.
        width: Pixels.
        samples: Rays a pixel along each side.
        device: `cpu`, `cuda` or `auto`.
    """

    frames_per_step = 1
    has_worlds_only = True
    poses: PredictedPoses | None = None

    def __init__(self, height: int, width: int, samples: int, device: str) -> None:
        self.height, self.width = height, width
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._renderer = Renderer(height=height, width=width, samples=samples, device=name)
        self._blocks: torch.Tensor | None = None
        self._free: list[int] = []

    def begin(self, start: Start, seed: int) -> tuple[Any, NDArray[np.uint8]]:
        """Take a slot and render the first view."""
        assert start.simulator is not None
        slot = self._take(start.simulator)
        return slot, self._render([slot], start.poses[-1:])[0]

    def advance(
        self,
        rows: Sequence[Row],
        actions: NDArray[np.float32],
        poses: NDArray[np.float64],
        cells: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """Render every player's view."""
        slots = [row.handle for row in rows]
        for slot in slots:
            if len(slot.simulator.edits) != slot.edits:
                self._upload(slot)
        return self._render(slots, poses[:, 0])[:, None]

    def memory_frames(self, handle: Any) -> int:
        """The truth needs no memory."""
        return 0

    def stats(self, handle: Any) -> dict[str, Any]:
        """The player's edits."""
        return {"edits": list(handle.simulator.edits)}

    def snapshot(self, handle: Any) -> None:
        """Nothing: the simulator is the row's."""

    def restore(self, snapshot: Any, simulator: Simulator | None) -> Any:
        """A slot for a restored player."""
        assert simulator is not None
        return self._take(simulator)

    def fork(self, handle: Any, simulators: Sequence[Simulator | None]) -> list[Any]:
        """Slots for the children."""
        return [self.restore(None, simulator) for simulator in simulators]

    def close(self, handle: Any) -> None:
        """Give the slot back."""
        self._free.append(handle.index)

    def _take(self, simulator: Simulator) -> _Slot:
        if not self._free:
            shape = simulator.blocks.shape[1:]
            held = 0 if self._blocks is None else len(self._blocks)
            more = torch.empty((max(held, 1), *shape), dtype=torch.uint8, device=self._renderer.device)
            self._blocks = more if self._blocks is None else torch.cat([self._blocks, more])
            self._free = list(range(held + len(more) - 1, held - 1, -1))
        slot = _Slot(self._free.pop(), simulator)
        self._upload(slot)
        return slot

    def _upload(self, slot: _Slot) -> None:
        assert self._blocks is not None
        self._blocks[slot.index] = torch.from_numpy(slot.simulator.blocks[0]).to(self._blocks.device)
        slot.edits = len(slot.simulator.edits)

    def _render(self, slots: Sequence[_Slot], poses: NDArray[np.float64]) -> NDArray[np.uint8]:
        assert self._blocks is not None
        index = np.array([slot.index for slot in slots], np.int64)
        return self._renderer.render(self._blocks, index, poses).rgb.cpu().numpy()


class VoxelEnv(RowEnv):
    """The true voxel world, one player (`DecMem-Voxel-v0`).

    Spaces, tasks, starts, `info` and `snapshot`, `restore`, `fork` are those of `DecMemEnv`; `memory_frames` is 0 and
    `pose_source` is `truth`, or `given` in action mode `pose`. Resets take `options={"world_seed": ...}` only.

    Args:
        render_mode: None, `rgb_array` or `human`.
        height: Frame height in pixels.
        width: Frame width in pixels.
        samples: Rays a pixel along each side (2 is what the bundled model was trained on).
        device: `cpu`, `cuda` or `auto`.
        **settings: See `rows.Settings`.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        height: int = 96,
        width: int = 160,
        samples: int = 2,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        super().__init__(Rows(Truth(height, width, samples, device), settings), render_mode)


class VoxelVectorEnv(RowVectorEnv):
    """N true voxel worlds, rendered together (`gym.make_vec("DecMem-Voxel-v0", num_envs=N)`).

    Args:
        num_envs: N.
        max_episode_steps: Steps after which an episode is truncated; None: never.
        autoreset_mode: `NEXT_STEP`, `SAME_STEP` or `DISABLED` (a name or `gymnasium.vector.AutoresetMode`).
        render_mode: None or `rgb_array`.
        height: Frame height in pixels.
        width: Frame width in pixels.
        samples: Rays a pixel along each side.
        device: `cpu`, `cuda` or `auto`.
        **settings: See `rows.Settings`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        autoreset_mode: Any = "NEXT_STEP",
        render_mode: str | None = None,
        height: int = 96,
        width: int = 160,
        samples: int = 2,
        device: str = "cpu",
        **settings: Any,
    ) -> None:
        rows = Rows(Truth(height, width, samples, device), settings)
        super().__init__(rows, num_envs, max_episode_steps, autoreset_mode, render_mode)
