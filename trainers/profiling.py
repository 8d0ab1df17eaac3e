"""Where the time of a step goes; costs nothing unless switched on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Profile:
    """Wall-clock time by named section.

    Args:
        device: Synchronised around every section while `enabled`.
        enabled: Measure.
    """

    def __init__(self, device: torch.device, enabled: bool = False) -> None:
        self.device, self.enabled = device, enabled
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the block's time under a name."""
        if not self.enabled:
            yield
            return
        start = self._now()
        self._open.append(name)
        yield
        self._open.pop()
        spent = self._now() - start
        self.seconds[name] += spent
        if self._open:  # time of an inner section is not counted twice
            self.seconds[self._open[-1]] -= spent

    def table(self, steps: int) -> str:
        """Milliseconds a step and shares, largest first."""
        total = sum(self.seconds.values()) or 1e-9
        rows = sorted(self.seconds.items(), key=lambda item: -item[1])
        lines = [f"  {name:<12} {1e3 * s / max(steps, 1):9.2f} ms/step {100 * s / total:6.1f} %" for name, s in rows]
        return "\n".join([f"profile of {steps} steps (synchronised):", *lines])
