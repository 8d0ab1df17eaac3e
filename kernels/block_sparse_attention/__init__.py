"""Attention in which every (batch, head, query block) reads its own list of key blocks."""

from __future__ import annotations

import importlib.util
from typing import Literal, overload

import torch
from torch import Tensor

from ..dispatch import is_plain
from . import checks, native
from .cpu import block_sparse_attention_cpu
from .inverse import InverseLists, invert_lists
from .naive import block_sparse_attention_naive
from .op import run_forward, sparse_forward

BACKENDS = ("naive", "cpu", "native", "triton", "hopper")
_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["BACKENDS", "InverseLists", "block_sparse_attention", "invert_lists"]


def _choose(q: Tensor, k: Tensor, v: Tensor) -> str:
    if q.device.type == "cuda" and _HAS_TRITON:
        return "auto"
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.device.type != "cpu" or needs_grad:
        return "naive"
    return "native" if native.serves(q, k, v) else "cpu"


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    *,
    q_block: int,
    kv_block: int,
    kv_sizes: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
    return_lse: Literal[False] = False,
    inverse: InverseLists | None = None,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    *,
    q_block: int,
    kv_block: int,
    kv_sizes: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
    return_lse: Literal[True],
    inverse: InverseLists | None = None,
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    *,
    q_block: int,
    kv_block: int,
    kv_sizes: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
    return_lse: bool = False,
    inverse: InverseLists | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from every query block to the key blocks in its list (maths: ``naive.py``).

    Args:
        q: queries ``[B, H, Tq, D]``, bf16, fp16 or fp32, D from 8 to 128 (fast: 32, 64, 128).
        k: keys ``[B or 1, H, Tk, D]``; a batch of 1 is shared by all rows. Any strides, channels contiguous for speed.
            On the CPU fp32 queries also read keys and values stored in fp16; all is computed in fp32.
        v: values, like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``, ``NQ = Tq / q_block``; entry ``j`` names key rows ``j * kv_block
            ...``. Entries are distinct; ascending ones are fastest. Entries past ``counts`` are never read.
        counts: int32 ``[B or 1, H or 1, NQ]``, 0 to L. A count of 0 gives output 0 and log-sum-exp -inf.
        q_block: tokens of a query block, any number.
        kv_block: tokens of a key block, any number.
        kv_sizes: int32 ``[NK]``, valid leading tokens of each key block; None if all are full. Others are never used.
        scale: factor on the logits, default ``D ** -0.5``.
        backend: "hopper" (forward on GPUs of compute capability 9.0, bf16 or fp16, 64 or 128 channels, blocks of 65 to
            192 queries and 40 to 320 keys; the default where it serves), "triton" (CUDA; otherwise the default there),
            "native" (CPU with a C compiler, fp32 queries, no gradients; the default there where it serves), "cpu" (the
            same in torch's operators), "naive".
        return_lse: also return the natural log-sum-exp, fp32 ``[B, H, Tq]`` (differentiable), to merge branches.
        inverse: :func:`invert_lists` of ``lists`` and ``counts``; pass it when several backward passes share them.

    Returns:
        Output ``[B, H, Tq, D]`` in q's type, or (output, log-sum-exp).

    Raises:
        ValueError: shapes, types or devices do not fit, or (on the CPU, or with ``DECMEM_CHECK_LISTS=1``) an index is
            out of range.
    """
    checks.check_shapes(q, k, v, lists, counts, kv_sizes, q_block, kv_block)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"block_sparse_attention: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    backend = backend or _choose(q, k, v)
    if checks.DEBUG or (q.device.type == "cpu" and not torch.compiler.is_compiling()):
        checks.check_ranges(lists, counts, k.shape[2] // kv_block)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    lse: Tensor | None
    if backend in ("auto", "triton", "hopper"):
        offsets, entries = inverse if inverse is not None else (None, None)
        run = run_forward if is_plain(q, k, v) else sparse_forward
        out, lse = run(q, k, v, lists, counts, kv_sizes, offsets, entries, q_block, kv_block, scale, backend)
    elif backend == "native":
        if not native.serves(q, k, v):
            raise ValueError(
                "block_sparse_attention: backend 'native' needs a C compiler, fp32 queries and channels in 32s"
            )
        out, lse = native.block_sparse_attention_native(q, k, v, lists, counts, kv_sizes, q_block, kv_block, scale)
    elif backend == "cpu":
        with torch.no_grad():
            out, lse = block_sparse_attention_cpu(
                q, k, v, lists, counts, kv_sizes, q_block, kv_block, scale, with_lse=return_lse
            )
    else:
        out, lse = block_sparse_attention_naive(q, k, v, lists, counts, kv_sizes, q_block, kv_block, scale)
    if return_lse:
        assert lse is not None
        return out, lse
    return out
