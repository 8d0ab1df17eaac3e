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
        self._trace: torch.profiler.profile | None = None

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

    def watch_kernels(self) -> None:
        """Start recording the kernels of the steps that follow (CUDA)."""
        self.enabled = False  # synchronising would only pad the trace
        self._trace = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._trace.start()

    def kernels(self, steps: int, rows: int = 30) -> str:
        """Stop recording; milliseconds a step by kernel, largest first, and the time the device was busy."""
        torch.cuda.synchronize(self.device)
        assert self._trace is not None
        self._trace.stop()
        events = sorted(self._trace.key_averages(), key=lambda e: -e.self_device_time_total)
        busy = sum(e.self_device_time_total for e in events) / 1e3 / steps
        lines = [
            f"  {e.self_device_time_total / 1e3 / steps:9.3f} ms {e.count / steps:7.1f} calls  {e.key[:100]}"
            for e in events[:rows]
        ]
        return "\n".join([f"kernels of {steps} steps, {busy:.1f} ms of device time a step:", *lines])
