"""Launch the Triton kernels: strides, grids and settings."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .grouping import group_size, merge_lists
from .inverse import InverseLists, invert_lists
from .triton_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel
from .tuning import launch_config, padded_channels, row_tile


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _alignment(*tensors: Tensor) -> int:
    """8 if every row of every tensor starts at a multiple of 8 elements, else 1."""
    return 8 if all(s % 8 == 0 for x in tensors for s in x.stride()[:-1]) else 1


def _strides(x: Tensor, batch: int, align: int) -> tuple[int, int, int]:
    """Batch, head and token stride in units of ``align``; 0 over a batch of one that all rows share."""
    return (x.stride(0) // align if x.shape[0] == batch else 0), x.stride(1) // align, x.stride(2) // align


def _list_strides(lists: Tensor, counts: Tensor) -> tuple[int, int, int, int, int]:
    def stride(x: Tensor, axis: int) -> int:
        return x.stride(axis) if x.shape[axis] > 1 else 0

    return stride(lists, 0), stride(lists, 1), lists.stride(2), stride(counts, 0), stride(counts, 1)


def _options(kernel: str, q: Tensor, resident: int) -> tuple[int, int, dict[str, object]]:
    """Tiles of a resident block of ``resident`` tokens, rows of a tile, and the compile-time options of a launch."""
    dim = q.shape[3]
    tile = row_tile(resident)
    single = q.dtype == torch.float32
    config = launch_config(kernel, tile, padded_channels(dim), single)
    options = {
        "D": dim,
        "D_PAD": padded_channels(dim),
        "TILE": tile,
        "TILES": triton.cdiv(resident, tile),
        "STEP": config.step,
        "COPIES": max(1, 32 * config.warps // config.step),
        # fp32 means fp32: no tf32 rounding. Ignored for 16-bit types.
        "PRECISION": "ieee" if single else "tf32",
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
    return tile, triton.cdiv(resident, tile), options


def _merge(lists: Tensor, counts: Tensor, kv_blocks: int, group: int) -> tuple[Tensor, Tensor]:
    """Lists of groups of query blocks; the given ones where a group is one block."""
    if group == 1:
        return lists, counts
    merged = merge_lists(lists, counts, kv_blocks, group, transposed=False)
    groups = triton.cdiv(lists.shape[2], group)
    return merged.entries.view(*lists.shape[:2], groups, -1), merged.counts.view(*lists.shape[:2], groups)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend; arguments and results as :func:`.naive.block_sparse_attention_naive`.

    Args:
        q: ``[B, H, Tq, D]``, bf16, fp16 or fp32.
        k: ``[B or 1, H, Tk, D]``.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]`` or None.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.

    Returns:
        Output ``[B, H, Tq, D]``, contiguous, and log-sum-exp fp32 ``[B, H, Tq]``.
    """
    q, k, v, lists, counts = (_rows_contiguous(x) for x in (q, k, v, lists, counts))
    batch, heads, tokens, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device)
    q_blocks, kv_blocks = tokens // q_block, k.shape[2] // kv_block
    if out.numel() == 0:
        return out, lse
    group = group_size(q_block, q_blocks, kv_blocks, batch * heads)
    lists, counts = _merge(lists, counts, kv_blocks, group)
    _, tiles, options = _options("forward", q, q_block * group)
    grid = (batch * heads * triton.cdiv(q_blocks, group) * tiles,)
    align = _alignment(q, k, v)
    forward_kernel[grid](
        q, k, v, lists, counts, counts if kv_sizes is None else kv_sizes, out, lse,
        *_strides(q, batch, align), *_strides(k, batch, align), *_strides(v, batch, align),
        *_list_strides(lists, counts), heads, q_blocks, scale,
        Q_BLOCK=q_block, KV_BLOCK=kv_block, GROUP=group, ALIGN=align, HAS_SIZES=kv_sizes is not None, **options,
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    inverse: InverseLists | None,
    q_block: int,
    kv_block: int,
    scale: float,
    grad_q: Tensor | None = None,
    delta: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward`, deterministic.

    Args:
        grad_out: like ``out``.
        grad_lse: fp32 ``[B, H, Tq]``.
        q: as given to :func:`forward`, like all arguments without a word of their own.
        k: see ``q``.
        v: see ``q``.
        out: contiguous output of :func:`forward`.
        lse: contiguous log-sum-exp of :func:`forward`.
        lists: see ``q``.
        counts: see ``q``.
        kv_sizes: see ``q``.
        inverse: of ``lists``; None to compute it, which happens anyway where small blocks are merged.
        q_block: see ``q``.
        kv_block: see ``q``.
        scale: see ``q``.
        grad_q: gradient of q if another kernel has computed it; with ``delta``.
        delta: fp32 ``[B, H, Tq]``, product of output and its gradient, less the log-sum-exp's gradient.

    Returns:
        Gradients of q, k and v, contiguous; summed over the batch where ``k`` and ``v`` have a batch of one.
    """
    q, k, v, lists, counts, grad_out = (_rows_contiguous(x) for x in (q, k, v, lists, counts, grad_out))
    grad_lse = grad_lse.contiguous()
    batch, heads, tokens, _ = q.shape
    q_blocks, kv_blocks = tokens // q_block, k.shape[2] // kv_block
    ready = grad_q is not None and delta is not None
    if grad_q is None or delta is None:
        grad_q, delta = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty_like(lse)
    grad_k = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if grad_q.numel() == 0 or grad_k.numel() == 0:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
    align = _alignment(q, k, v, grad_out)
    q_strides, k_strides, v_strides, do_strides = (_strides(x, batch, align) for x in (q, k, v, grad_out))
    sizes = counts if kv_sizes is None else kv_sizes
    common = {"Q_BLOCK": q_block, "KV_BLOCK": kv_block, "ALIGN": align, "HAS_SIZES": kv_sizes is not None}

    if not ready:
        group = group_size(q_block, q_blocks, kv_blocks, batch * heads)
        merged_lists, merged_counts = _merge(lists, counts, kv_blocks, group)
        _, tiles, options = _options("query_gradient", q, q_block * group)
        query_gradient_kernel[(batch * heads * triton.cdiv(q_blocks, group) * tiles,)](
            q, k, v, out, grad_out, lse, grad_lse, delta, merged_lists, merged_counts, sizes, grad_q,
            *q_strides, *k_strides, *v_strides, *do_strides, *_list_strides(merged_lists, merged_counts),
            heads, q_blocks, scale, GROUP=group, **common, **options,
        )  # fmt: skip

    key_batch = k.shape[0]
    group = group_size(kv_block, kv_blocks, q_blocks, key_batch * heads)
    if group > 1:
        entries, offsets = merge_lists(lists, counts, kv_blocks, group, transposed=True)
    else:
        offsets, entries = inverse or invert_lists(lists, counts, kv_blocks)
    _, tiles, options = _options("key_gradient", q, kv_block * group)
    key_gradient_kernel[(key_batch * heads * triton.cdiv(kv_blocks, group) * tiles,)](
        q, k, v, grad_out, lse, delta, offsets, entries, sizes, grad_k, grad_v,
        *q_strides, *k_strides, *v_strides, *do_strides,
        heads, q_blocks, kv_blocks, lists.shape[0], lists.shape[1], batch // key_batch,
        entries.shape[-1], scale, GROUP=group, **common, **options,
    )  # fmt: skip
    return grad_q, grad_k, grad_v
