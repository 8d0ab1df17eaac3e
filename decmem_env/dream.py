"""The backend of the dreamed worlds: model sessions behind the rows of an environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .model.memory_layout import CUDA_BUDGET
from .model.pass_graphs import PassGraphs
from .model.passes import LARGE_FRAME
from .predicted_player import PredictedPoses
from .rollout import frame_size, frames_per_step, whole_context
from .rows import Row
from .start import Start
from .worlds import Renderer, Simulator

_WORLD_BYTES = 1 << 29  # of memory: 790 frames of the bundled model


@lru_cache(maxsize=4)
def load_model(checkpoint: str, device: str, memory_budget: int | None) -> Any:
    """Load a `WorldModel` once for every environment that wants it (its own errors name the mend)."""
    from .model import WorldModel

    return WorldModel.from_pretrained(checkpoint, device=device, memory_budget=memory_budget)


@lru_cache(maxsize=4)
def _renderer(height: int, width: int, device: str) -> Renderer:
    return Renderer(height=height, width=width, device=device)


def _budget_of(worlds: int, whole: int) -> int | None:
    """Half a GiB a world, at most a quarter of the device's `whole`, if that is more than the model's default."""
    most = min(worlds * _WORLD_BYTES, whole // 4)
    return most if most > CUDA_BUDGET else None


class Dream:
    """Backend that generates frames.

    Args:
        checkpoint: Name, folder or hub id.
        device: `cpu`, `cuda` or `auto`.
        memory_budget: Bytes for the memories of all sessions of the model, or None.
        worlds: How many sessions are to come; on CUDA a budget of None grows with them.
        **sampling: Arguments of `WorldModel.start`; None leaves the model's default.
    """

    has_worlds_only = False

    def __init__(
        self, checkpoint: str, device: str, memory_budget: int | None, *, worlds: int = 1, **sampling: Any
    ) -> None:
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {device!r}: this torch sees no CUDA device, use device='cpu'")
        if memory_budget is None and self.device.startswith("cuda"):
            memory_budget = _budget_of(worlds, torch.cuda.get_device_properties(self.device).total_memory)
        self.model = load_model(checkpoint, self.device, memory_budget)
        small = self.model.config.tokens <= LARGE_FRAME
        if worlds > 1 and small and self.device.startswith("cuda") and self.model.graphs is None:
            # The passes of many small worlds take longer to launch than to compute.
            self.model.graphs = PassGraphs(self.model.streamer)
        self.height, self.width = frame_size(self.model)
        self.frames_per_step = frames_per_step(self.model)
        self.poses = None if self.model.pose_predictor is None else PredictedPoses(self.model, self.film)
        self._sampling = {name: value for name, value in sampling.items() if value is not None}

    def film(self, start: Start) -> NDArray[np.uint8]:
        """Frames of a context, uint8 [C, H, W, 3]; those of a voxel start are rendered."""
        if start.frames is not None:
            return start.frames
        assert start.simulator is not None
        blocks = torch.from_numpy(start.simulator.blocks).to(self.device)
        renderer = _renderer(self.height, self.width, self.device)
        return renderer.render(blocks, np.zeros(len(start.poses), np.int64), start.poses).rgb.cpu().numpy()

    def begin(self, start: Start, seed: int) -> tuple[Any, NDArray[np.uint8]]:
        """Open a session and let it observe the context."""
        frames = self.film(start)
        session = self.model.start(seed=seed, **self._sampling)
        session.observe(*whole_context(self.model, frames, start.actions, start.poses))
        return session, frames[-1].copy()

    def advance(
        self,
        rows: Sequence[Row],
        actions: NDArray[np.float32],
        poses: NDArray[np.float64],
        cells: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """One batched model step."""
        frames = self.model.step([row.handle for row in rows], actions, poses, cells=cells)
        return torch.as_tensor(frames).cpu().numpy()

    def memory_frames(self, handle: Any) -> int:
        """Latent frames in the session's memory."""
        return int(handle.remembered)

    def stats(self, handle: Any) -> dict[str, Any]:
        """The session's stats."""
        return dict(handle.stats)

    def snapshot(self, handle: Any) -> Any:
        """A model snapshot."""
        return handle.snapshot()

    def restore(self, snapshot: Any, simulator: Simulator | None) -> Any:
        """A session that goes on from a snapshot."""
        return self.model.restore(snapshot)

    def fork(self, handle: Any, simulators: Sequence[Simulator | None]) -> list[Any]:
        """Forked sessions, copy-on-write."""
        return list(handle.fork(len(simulators)))

    def close(self, handle: Any) -> None:
        """Free a session."""
        handle.close()
