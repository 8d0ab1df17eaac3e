"""What stands between the product of q, k and v and its attention, in two passes over the tokens of frames.

The norm of q and k over all heads; the camera's matrix on groups of four channels and rotary angles on pairs of the
rest (DecMem section 3.5; values know the camera only); keys and values straight into their pages of the memory; block
means of queries and keys (section 4.1). As compiled tensor operations these took a tenth of a step of Wan-1.3B.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["encode_pages", "has_kernel"]


def has_kernel(device: torch.device, head_dim: int) -> bool:
    """Whether the kernel runs here."""
    return device.type == "cuda" and _HAS_TRITON and head_dim in (32, 64, 128)


def encode_pages(
    mixed: Tensor,
    norm: Tensor,
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: tuple[Tensor, Tensor, Tensor],
    slots: Tensor,
    block: int,
    real: int,
) -> tuple[Tensor, Tensor]:
    """Encode q, k and v of P frames; k and v go into pages.

    Args:
        mixed: ``[P, N, 3 * H * D or more]``, contiguous: q, k, v side by side, then anything.
        norm: fp32 ``[2, ..., H, D]``, scales of the norms of q and k.
        query: fp32 ``[P, 4, 4]``, the camera's matrix for q.
        key: fp32 ``[P, 4, 4]``, that for k and v.
        cos: fp32 ``[P, N, R]`` of the rotary angles of the last ``2 * R`` channels; the others are the camera's.
        sin: like ``cos``.
        pages: keys and values ``[H, capacity, N, D]``, mean keys fp32 ``[H, capacity, M, D]``: written.
        slots: int64 ``[P]``, the page of each frame.
        block: tokens of a block; ``N = M * block``.
        real: tokens of a frame that count in means; the rest is padding at its end.

    Returns:
        q ``[P, H, N, D]`` like ``mixed``, and its block means, fp32 ``[P, H, M, D]``.
    """
    from .op import encode

    return encode(mixed, norm, query, key, cos, sin, pages, slots, block, real)
