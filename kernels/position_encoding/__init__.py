"""What stands between a layer's products and its attention for large frames: one pass before, one behind.

Before: the norm of q and k over all heads; the camera's matrix on groups of four channels and rotary angles on pairs of
the rest (DecMem section 3.5; values know the camera only); keys and values straight into their pages of the memory;
block means of queries and keys (section 4.1). Behind: the camera's matrix on both branches, then `alm + gate * sgm`
(section 4.3). As compiled tensor operations they took a sixth of a step of Wan-1.3B.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["encode_pages", "has_kernel", "merge_branches"]


def has_kernel(device: torch.device, head_dim: int) -> bool:
    """Whether the kernels run here."""
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
    """Encode q, k and v of F frames in B rows; k and v go into pages.

    Args:
        mixed: ``[B, F, N, 3 * H * D or more]``, contiguous: q, k, v side by side, then anything.
        norm: fp32 ``[2, ..., H, D]``, scales of the norms of q and k.
        query: fp32 ``[B * F, 4, 4]``, the camera's matrix for q.
        key: fp32 ``[B * F, 4, 4]``, that for k and v.
        cos: fp32 ``[B * F, N, R]`` of the rotary angles of the last ``2 * R`` channels; the others are the camera's.
        sin: like ``cos``.
        pages: keys and values ``[H, capacity, N, D]``, mean keys fp32 ``[H, capacity or more, M, D]``: written.
        slots: int64 ``[B * F]``, the page of each frame.
        block: tokens of a block; ``N = M * block``.
        real: tokens of a frame that count in means; the rest is padding at its end.

    Returns:
        q ``[B, H, F, N, D]`` like ``mixed``, and its block means, fp32 ``[B, H, F, M, D]``.
    """
    from .op import encode

    return encode(mixed, norm, query, key, cos, sin, pages, slots, block, real)


def merge_branches(
    local: Tensor, retrieved: Tensor | None, mixed: Tensor, output: Tensor, camera: int, sigmoid: bool
) -> Tensor:
    """``output(local) + gate * output(retrieved)``.

    Args:
        local: ``[B, H, K * N, D]``, contiguous, of the last K of F frames.
        retrieved: like ``local``, or None.
        mixed: ``[B, F, N, 4 * H * D]``, contiguous; its last quarter opens the gate. Not read without a second branch.
        output: fp32 ``[B * F, 4, 4]``, the camera's matrix for outputs.
        camera: channels of a head that it turns, the first ones.
        sigmoid: whether the gate goes through a sigmoid.

    Returns:
        ``[B, K, N, H * D]`` like ``local``.
    """
    from .op import merge

    return merge(local, retrieved, mixed, output, camera, sigmoid)
