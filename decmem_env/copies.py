"""How much of the copying from host memory runs beside other work of a GPU, by the profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_KERNEL = "_gather_kernel"  # of `kernels.gather_blocks`


def copies_beside(device: torch.device, call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of copied blocks in a call, and the share of them while other kernels ran; nothing on the CPU."""
    if device.type != "cuda":
        return {}
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize(device)
    copies: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    for event in recorded.events() or ():
        if event.device_type == DeviceType.CUDA:
            spans = copies if _KERNEL in event.name else others
            spans.append((event.time_range.start, event.time_range.end))
    whole = covered(copies, [(0.0, float("inf"))])
    return {"copies_ms": whole / 1000.0, "copies_hidden": covered(copies, others) / max(whole, 1e-9)}


def covered(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """How much of the time that `some` (start, end) take together lies in `others`."""

    def joined(spans: list[tuple[float, float]]) -> list[list[float]]:
        made: list[list[float]] = []
        for start, end in sorted(spans):
            if made and start <= made[-1][1]:
                made[-1][1] = max(made[-1][1], end)
            else:
                made.append([start, end])
        return made

    both = joined(others)
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in joined(some) for c, d in both)
