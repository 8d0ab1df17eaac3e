"""Choose, for every query block, the key blocks that block-sparse attention reads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import is_plain
from . import native
from .naive import pool_blocks, select_blocks_naive
from .native import Codes, Runs

BACKENDS = ("naive", "native", "triton")
_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["BACKENDS", "Codes", "Runs", "pool_blocks", "select_blocks"]


def _run(
    q_pooled: Tensor, k_pooled: Tensor, k: int, limit: Tensor, first: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    from .triton import select_blocks_triton

    return select_blocks_triton(q_pooled, k_pooled, k, limit, first, mask)


_select = torch.library.custom_op("decmem::select_blocks", _run, mutates_args=())


@_select.register_fake
def _(
    q_pooled: Tensor, k_pooled: Tensor, k: int, limit: Tensor, first: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = q_pooled.shape[:3]
    return q_pooled.new_empty((*shape, k), dtype=torch.int32), q_pooled.new_empty(shape, dtype=torch.int32)


def _check(
    q_pooled: Tensor, k_pooled: Tensor, k: int, limit: Tensor, first: Tensor | None, mask: Tensor | None
) -> None:
    def need(ok: bool, message: Callable[[], str]) -> None:
        # Built only when needed: formatting a size would fix it in a compiled graph.
        if not ok:
            raise ValueError(f"select_blocks: {message()}")

    need(
        q_pooled.dim() == 4 and k_pooled.dim() == 4,
        lambda: "q_pooled and k_pooled must be [batch, heads, blocks, channels]",
    )
    batch, heads, num_queries, dim = q_pooled.shape
    need(
        k_pooled.shape[0] in (1, batch) and k_pooled.shape[1] == heads and k_pooled.shape[3] == dim,
        lambda: f"k_pooled {tuple(k_pooled.shape)} must be [{batch} or 1, {heads}, NK, {dim}]",
    )
    need(k >= 0, lambda: f"k must not be negative, got {k}")
    for name, bound in (("limit", limit), ("first", first)):
        if bound is not None and not (
            bound.dtype == torch.int32
            and bound.dim() == 2
            and bound.shape[0] in (1, batch)
            and bound.shape[1] == num_queries
        ):
            raise ValueError(f"select_blocks: {name} must be int32 [{batch} or 1, {num_queries}]")
    if mask is not None:
        sizes = (batch, heads, num_queries, k_pooled.shape[2])
        need(
            mask.dtype == torch.bool and mask.dim() == 4
            and all(have in (1, want) for have, want in zip(mask.shape, sizes, strict=True)),
            lambda: f"mask must be bool, broadcastable to {sizes}, got {mask.dtype} {tuple(mask.shape)}",
        )  # fmt: skip
    others = [k_pooled, limit, *(x for x in (first, mask) if x is not None)]
    need(all(x.device == q_pooled.device for x in others), lambda: f"all tensors must be on {q_pooled.device}")


def _choose(q_pooled: Tensor, mask: Tensor | None) -> str:
    if q_pooled.device.type == "cuda" and _HAS_TRITON:
        return "triton"
    usable = q_pooled.device.type == "cpu" and mask is None and not torch.compiler.is_compiling()
    return "native" if usable and native.load() is not None else "naive"


def select_blocks(
    q_pooled: Tensor,
    k_pooled: Tensor,
    k: int,
    limit: Tensor,
    *,
    first: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
    codes: Codes | None = None,
    runs: Runs | None = None,
) -> tuple[Tensor, Tensor]:
    """Select the best-scoring allowed key blocks of every query block (maths: ``naive.py``).

    Args:
        q_pooled: ``[B, H, NQ, D]``, from :func:`pool_blocks`.
        k_pooled: ``[B or 1, H, NK, D]``, likewise.
        k: most blocks to select; all allowed ones are taken where there are fewer.
        limit: int32 ``[B or 1, NQ]``; key blocks ``first <= j < limit`` are allowed.
        first: int32 ``[B or 1, NQ]``, default 0.
        mask: bool, broadcastable to ``[B, H, NQ, NK]``; False forbids a block.
        backend: "triton" (the default on CUDA), "native" (the default on the CPU where there is a C compiler; no mask)
            or "naive".
        codes: 8-bit copies of ``k_pooled`` (batch 1), which "native" then scans first: faster, with the same result.
        runs: the keys are these parts of ``k_pooled`` and ``codes``, (first, length) each, one after the other;
            "native" reads them in place, the others copy them.

    Returns:
        lists int32 ``[B, H, NQ, k]``, ascending per head, 0 past the count, and counts int32 ``[B, H, NQ]``. Constants:
        no gradient. fp32 scores follow ``torch.set_float32_matmul_precision``.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    for start, length in runs or ():
        if not 0 <= start <= start + length <= k_pooled.shape[2]:
            raise ValueError(f"select_blocks: run ({start}, {length}) is not among {k_pooled.shape[2]} key blocks")
    if backend is None:
        backend = _choose(q_pooled, mask)
    if backend not in BACKENDS:
        raise ValueError(f"select_blocks: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if runs is not None and backend != "native":
        k_pooled = torch.cat([k_pooled[:, :, start : start + length] for start, length in runs], 2)
    _check(q_pooled, k_pooled, k, limit, first, mask)
    q_pooled, k_pooled = q_pooled.detach(), k_pooled.detach()
    if backend == "triton":
        run = _run if is_plain(q_pooled, k_pooled) else _select
        lists, counts = run(q_pooled, k_pooled, k, limit, first, mask)
        return lists, counts
    with torch.no_grad():
        if backend == "native":
            if mask is not None or q_pooled.device.type != "cpu":
                raise ValueError(f"select_blocks: backend 'native' takes no mask and no {q_pooled.device} tensors")
            return native.select_blocks_native(q_pooled, k_pooled, k, limit, first, codes, runs)
        return select_blocks_naive(q_pooled, k_pooled, k, limit, first, mask)
