"""Walks of a pool dreamed anew by the model that has seen them: what readers of latents meet when it generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .surroundings import SurroundingsPool

_TRUE_FIRST = 0.5  # share of dreamed walks that begin with true frames, up to half of them: a map made of both


class Dreamer:
    """Lets a model observe walks and generate them once more from their first frame, frame after frame of all at once.

    The walk has shown every place, so a dream that is right shows what is there; one that is wrong is wrong in the way
    of the model's own frames. Free-running: each frame builds on the dreamed ones before it.

    Args:
        folder: Checkpoint of the model.
        source: Walks to dream of.
        target: Takes the dreamed ones, of the same length.
        rows: Walks that are dreamed at once.
        seed: Of what is drawn.
    """

    def __init__(self, folder: Path, source: SurroundingsPool, target: SurroundingsPool, rows: int, seed: int) -> None:
        from decmem_env.model import WorldModel
        from decmem_env.model.config import ModelConfig
        from decmem_env.model.memory_layout import page_bytes

        device = source.latents.device
        config = ModelConfig.from_json((folder / "config.json").read_text())
        kind = torch.float16 if device.type == "cuda" else torch.float32
        # Each walk twice, observed and dreamed; and room to work in.
        budget = page_bytes(config, kind) * (rows + 1) * (2 * source.length + 64)
        self._model = WorldModel.from_pretrained(folder, device=device, memory_budget=budget, host_budget=0)
        self._source, self._target, self._rows = source, target, rows
        self._rng = np.random.default_rng([seed, rows])
        self._sessions: list[Any] = []
        self._slots = self._stamps = np.zeros(0, np.int64)
        self._actions, self._poses = source.actions[:0], source.poses[:0]
        self._latents = source.latents[:0]

    def step(self) -> None:
        """Dream one frame more of every walk; begins others, or hands dreamed ones over, where it is time."""
        if not self._sessions and not self._begin():
            return
        t = self._sessions[0].next_frame - self._source.length
        self._model.step(self._sessions, self._actions[:, t, None], self._poses[:, t, None], decode=False)
        shown = [session.pending.latents[-1] for session in self._sessions]
        self._latents[:, t] = torch.stack(shown).to(self._latents)
        if t + 1 == self._source.length:
            self._finish()

    def close(self) -> None:
        """Drop the walks that are being dreamed."""
        for session in self._sessions:
            session.close()
        self._sessions = []

    def _begin(self) -> bool:
        slots = self._still()
        if not len(slots):
            return False
        source, self._slots = self._source, self._rng.choice(slots, min(self._rows, len(slots)), replace=False)
        self._stamps = source.stamps[self._slots]
        self._actions, self._poses = source.actions[self._slots], source.poses[self._slots]
        self._latents = torch.empty_like(source.latents[: len(self._slots)])
        for slot, actions, poses in zip(self._slots, self._actions, self._poses, strict=True):
            session = self._model.start(seed=int(self._rng.integers(1 << 31)))
            session.observe_latents(source.latents[slot].float(), actions, poses)
            self._sessions.append(session)
        return True

    def _still(self) -> NDArray[np.int64]:
        """Slots of walks that change no block: a dream of one that does shows the change before it is made."""
        source = self._source
        return np.array([slot for slot in range(source.count) if not source.changes(slot).any()], np.int64)

    def _finish(self) -> None:
        source, length = self._source, self._source.length
        for row, slot in enumerate(self._slots):
            if source.stamps[slot] == self._stamps[row]:  # else another walk has taken its place
                first = int(self._rng.integers(1, length // 2 + 1)) if self._rng.random() < _TRUE_FIRST else 0
                self._target.take(source, int(slot), self._latents[row], first)
        self.close()
