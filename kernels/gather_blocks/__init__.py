"""Copy listed memory blocks side by side, from wherever their pages lie: on the device, or in host memory.

Pages may be stored in 8 bits, with one scale for the keys and one for the values of each head and block; copies are in
the compute type. On CUDA the kernel reads pinned host memory itself: nothing waits for the CPU, which never learns what
was retrieved. Attention then reads the copies by lists of their places.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
from torch import Tensor

from .naive import dequantise_blocks, gather_blocks_naive, quantise_blocks

_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = [
    "HostSegments",
    "Source",
    "dequantise_blocks",
    "gather_blocks",
    "gather_blocks_naive",
    "has_kernel",
    "quantise_blocks",
]


class HostSegments(NamedTuple):
    """Pages in host memory, pinned where there is a GPU.

    Attributes:
        tensors: Each ``[pages, layers, 2 (keys, values), H, N, D]``.
        addresses: int64 ``[segments]`` on the device, the first byte of each.
        pages: Of a segment.
        layer: Which one to read.
    """

    tensors: list[Tensor]
    addresses: Tensor
    pages: int
    layer: int


class Source(NamedTuple):
    """Where blocks are copied from. Frame ``f``, block ``m`` of M is block ``f * M + m``.

    Attributes:
        keys: ``[H, P, N, D]`` on the device, contiguous, in the compute type or int8.
        values: Like ``keys``.
        where: int32 ``[F]``, page ``p`` of each frame: of ``keys`` from 0 on, below 0 page ``-1 - p`` of ``host``.
        scales: fp32 ``[2, H, F, M]`` of int8 keys and values; None otherwise.
        host: None if all frames are on the device.
    """

    keys: Tensor
    values: Tensor
    where: Tensor
    scales: Tensor | None = None
    host: HostSegments | None = None


def gather_blocks(
    source: Source,
    blocks: Tensor,
    out: tuple[Tensor, Tensor],
    block: int,
    programs: int | None = None,
    count: Tensor | None = None,
) -> None:
    """Copy blocks.

    Args:
        source: From where.
        blocks: int32 ``[H or 1, S]``; a negative one leaves its place as it is.
        out: keys and values ``[H, S, block, D]``, contiguous, in the compute type: written.
        block: tokens of a block; ``N = M * block``.
        programs: most programs of the GPU kernel, so that a copy from the host leaves room for others beside it.
        count: int64 scalar, to which the number of blocks that came from the host is added.

    Raises:
        ValueError: pages and outputs of different types without scales.
    """
    if source.scales is None and source.keys.dtype != out[0].dtype:
        raise ValueError(f"gather_blocks: pages of {source.keys.dtype}, outputs of {out[0].dtype}, no scales")
    if has_kernel(source.keys.device):
        from .op import gather

        gather(source, blocks, out, block, programs, count)
    else:
        if count is not None and source.host is not None:
            frames = blocks[blocks >= 0] // (source.keys.shape[2] // block)
            count += (source.where[frames.long()] < 0).sum()
        gather_blocks_naive(source.keys, source.values, source.where, source.scales, source.host, blocks, out, block)


def has_kernel(device: torch.device) -> bool:
    """Whether pinned host memory can be read from there."""
    return device.type == "cuda" and _HAS_TRITON
