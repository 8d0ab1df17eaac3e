"""Where the time of a step goes: the parts of `decmem bench cpu`.

The engine holds no clocks. While a profile is open, the functions that do a step's work are wrapped; each part's time
is its own, without that of the parts it calls.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any

REST = "player, pose and the rest of the environment"


class StepProfile:
    """Context manager that times the parts of the steps made inside it."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # for every open call, the time of the parts inside it
        self._wrapped: list[tuple[Any, str, Callable[..., Any]]] = []

    def __enter__(self) -> StepProfile:
        from .model import denoising, streaming, world_model

        for owner, name, part in (
            (world_model.WorldModel, "step", "sessions, noise and memory"),
            (world_model.WorldModel, "_decode", "decoder"),
            (world_model, "keeps", "keyframes"),
            (denoising.Chunks, "steps", "keyframes"),
            (denoising, "plan_pass", "lists and cameras"),
            (denoising, "place", "lists and cameras"),
            (streaming.Streamer, "compute", "transformer without attention"),
            (streaming, "select_blocks", "selection of blocks"),
            (streaming, "block_sparse_attention", "attention"),
        ):
            self._wrap(owner, name, part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, plain in self._wrapped:
            setattr(owner, name, plain)
        self._wrapped.clear()

    def parts(self, seconds: float, steps: int) -> dict[str, float]:
        """Mean milliseconds a step of each part, the longest first.

        Args:
            seconds: All that passed inside, of which the parts' sum leaves the environment's share.
            steps: Made inside.
        """
        found = dict(self._seconds)
        found[REST] = seconds - sum(found.values())
        longest = sorted(found, key=found.__getitem__, reverse=True)
        return {part: 1000.0 * found[part] / steps for part in longest}

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        plain = getattr(owner, name)

        @wraps(plain)
        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return plain(*arguments, **options)
            finally:
                spent = time.perf_counter() - start
                self._seconds[part] += spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        self._wrapped.append((owner, name, plain))
        setattr(owner, name, timed)
