"""Choosing among ways that compute the same, by measuring them once per device and shape."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

Way = Callable[[], Tensor]
_chosen: dict[tuple[Hashable, ...], str] = {}
_REPEATS = 3


def fastest(name: str, shape: Hashable, device: torch.device, ways: Mapping[str, Way]) -> Way:
    """The fastest of several ways to compute the same tensor.

    They are timed on the first call for a shape; a way that raises `RuntimeError` then (as library kernels do on chips
    and shapes that they do not serve) is out. The first way is taken on the CPU, while a CUDA graph is captured, and
    where all fail.

    Args:
        name: Of what is computed.
        shape: All that the time depends on.
        device: Where.
        ways: By name.
    """
    first = next(iter(ways))
    if device.type != "cuda":
        return ways[first]
    key = (name, device, shape)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return ways[first]
        times = {label: _milliseconds(way) for label, way in ways.items()}
        _chosen[key] = min(times, key=times.__getitem__)
    return ways[_chosen[key]]


def choices() -> dict[str, str]:
    """What was chosen so far, for benchmarks: name and shape to way."""
    return {f"{name} {shape}": label for (name, _, shape), label in _chosen.items()}


def _milliseconds(way: Way) -> float:
    """Time of the fastest of a few calls, after one that does not count; infinite where the way fails."""
    times = []
    try:
        for _ in range(1 + _REPEATS):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            way()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        return float("inf")
    return min(times[1:])
