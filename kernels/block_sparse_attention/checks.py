"""Input checks: static facts always, index ranges where reading them costs nothing (CPU) or on request."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

DEBUG = os.environ.get("DECMEM_CHECK_LISTS") == "1"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _need(ok: bool, message: Callable[[], str]) -> None:
    # Built only when needed: formatting a size would fix it in a compiled graph.
    if not ok:
        raise ValueError(f"block_sparse_attention: {message()}")


def check_shapes(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, counts: Tensor, kv_sizes: Tensor | None, q_block: int, kv_block: int
) -> None:
    """Check everything that shapes, types and devices tell.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B or 1, H, Tk, D]``.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]`` or None.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.

    Raises:
        ValueError: naming what is wrong.
    """
    _need(q.dim() == 4 and k.dim() == 4 and v.dim() == 4, lambda: "q, k and v must be [batch, heads, tokens, channels]")
    batch, heads, tokens, dim = q.shape
    _need(
        q_block >= 1 and kv_block >= 1, lambda: f"q_block and kv_block must be positive, got {q_block} and {kv_block}"
    )
    _need(k.shape == v.shape, lambda: f"k {tuple(k.shape)} and v {tuple(v.shape)} must have the same shape")
    _need(
        k.shape[0] in (1, batch) and k.shape[1] == heads and k.shape[3] == dim,
        lambda: f"k {tuple(k.shape)} must be [{batch} or 1, {heads}, tokens, {dim}] to match q {tuple(q.shape)}",
    )
    _need(8 <= dim <= 128, lambda: f"head channels must be 8 to 128, got {dim}")
    narrow = q.device.type == "cpu" and q.dtype == torch.float32 and k.dtype == v.dtype == torch.float16
    _need(
        narrow or (q.dtype in _DTYPES and k.dtype == q.dtype and v.dtype == q.dtype),
        lambda: (
            "q, k and v must share one of bfloat16, float16, float32, or on the CPU fp32 queries read fp16 keys and "
            f"values; got {q.dtype}, {k.dtype}, {v.dtype}"
        ),
    )
    _need(tokens % q_block == 0, lambda: f"{tokens} query tokens are not a multiple of q_block {q_block}; pad them")
    _need(
        k.shape[2] % kv_block == 0,
        lambda: f"{k.shape[2]} key tokens are not a multiple of kv_block {kv_block}; pad them",
    )
    _need(
        lists.dim() == 4 and counts.dim() == 3,
        lambda: "lists must be [B or 1, H or 1, NQ, L] and counts [B or 1, H or 1, NQ]",
    )
    _need(lists.dtype == torch.int32 and counts.dtype == torch.int32, lambda: "lists and counts must be int32")
    _need(
        lists.shape[0] in (1, batch) and lists.shape[1] in (1, heads) and lists.shape[2] == tokens // q_block,
        lambda: f"lists {tuple(lists.shape)} must be [{batch} or 1, {heads} or 1, {tokens // q_block}, L]",
    )
    _need(
        counts.shape == lists.shape[:3], lambda: f"counts {tuple(counts.shape)} must be lists' {tuple(lists.shape[:3])}"
    )
    others = [k, v, lists, counts]
    if kv_sizes is not None:
        blocks = k.shape[2] // kv_block
        _need(
            kv_sizes.dtype == torch.int32 and kv_sizes.shape == (blocks,) and kv_sizes.is_contiguous(),
            lambda: f"kv_sizes must be contiguous int32 [{blocks}], got {kv_sizes.dtype} {tuple(kv_sizes.shape)}",
        )
        others.append(kv_sizes)
    _need(all(x.device == q.device for x in others), lambda: f"all tensors must be on {q.device}")


def check_ranges(lists: Tensor, counts: Tensor, num_blocks: int) -> None:
    """Check counts and listed indices; reads the tensors (a synchronisation on a GPU).

    Args:
        lists: int32 ``[..., NQ, L]``.
        counts: int32 ``[..., NQ]``.
        num_blocks: number of key blocks NK.

    Raises:
        ValueError: a count is not in 0..L, or a listed index not in 0..NK-1.
    """
    length = lists.shape[-1]
    if counts.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(counts))
    _need(0 <= low and high <= length, lambda: f"counts must lie in 0..{length} (the list length), got {low}..{high}")
    if high == 0:
        return
    listed = torch.arange(length, device=lists.device) < counts[..., None]
    low, high = (int(x) for x in torch.aminmax(torch.where(listed, lists, lists.new_zeros(()))))
    _need(0 <= low and high < num_blocks, lambda: f"listed indices must lie in 0..{num_blocks - 1}, got {low}..{high}")
