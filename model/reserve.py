"""Reserving the memory's tensors.

Retrieval reads blocks all over gigabytes. On the CPU, pages of 4 KiB then cost a walk through the page tables for
almost every block; Linux is asked for its huge pages of 2 MiB instead. A reservation still costs nothing until it is
written, then 2 MiB at a time.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_LEAST = 16 << 20  # bytes; less is hardly more than the huge pages' edges


def reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor without defined content.

    Args:
        shape: Of the tensor.
        dtype: Of its numbers.
        device: Where.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if device.type != "cpu" or size < _LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        held.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel built without them
        pass
    return torch.frombuffer(held, dtype=dtype).view(shape)
