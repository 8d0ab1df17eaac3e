"""Dense attention of a chunk to the pages of its window, by the fastest library kernel present (DecMem's ALM).

All queries of a chunk see the same pages, so lists would only slow this down: the pages' real tokens are copied side by
side (one pass over them) and go to `scaled_dot_product_attention`. Which of its kernels is fastest depends on chip,
library and shape; it is measured once per device and shape.
"""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..choice import fastest
from .naive import dense_attention_naive, gather_pages_naive

_HAS_TRITON = importlib.util.find_spec("triton") is not None
CANDIDATES = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)

__all__ = ["dense_attention", "dense_attention_naive", "gather_pages", "gather_pages_naive"]


def gather_pages(keys: Tensor, values: Tensor, slots: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """Keys and values of listed pages, side by side.

    Args:
        keys: ``[H, pages, N, D]``; a page's tokens lie contiguous.
        values: like ``keys``.
        slots: int64 ``[G, n]``, the pages of each group.
        real: tokens of a page that count, its first ones.

    Returns:
        Keys and values, contiguous ``[G, H, n * real, D]``.
    """
    if keys.is_cuda and _HAS_TRITON and keys.stride() == values.stride() and keys[0, 0].is_contiguous():
        from .op import gather

        return gather(keys, values, slots, real)
    return gather_pages_naive(keys, slots, real), gather_pages_naive(values, slots, real)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of all queries to all keys.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B, H, Tk, D]``.
        v: like ``k``.

    Returns:
        Like ``q``.
    """
    if not q.is_cuda or q.dtype == torch.float32:  # in fp32 there is no choice, and TF32 is torch's own setting
        return F.scaled_dot_product_attention(q, k, v)

    def by(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    ways = {backend.name: partial(by, backend) for backend in CANDIDATES}
    return fastest("dense attention", (q.dtype, q.shape, k.shape[2]), q.device, ways)()
