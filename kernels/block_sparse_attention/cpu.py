"""Block-sparse attention for the CPU: gather the listed blocks, then one batched attention.

For inference of the bundled model (a handful of query blocks, some hundred keys each). The time is that of copying the
listed keys and values, so it does not depend on the length of the history.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _block_table(x: Tensor, block: int) -> tuple[Tensor, int, int] | None:
    """View ``x`` as a table with one row per block and the row strides of batch and head, if its strides allow."""
    row = block * x.shape[3]
    batch_stride = x.stride(0) if x.shape[0] > 1 else 0
    head_stride = x.stride(1) if x.shape[1] > 1 else 0
    if x.stride(3) != 1 or x.stride(2) != x.shape[3] or batch_stride % row or head_stride % row:
        return None
    last = (x.shape[0] - 1) * batch_stride + (x.shape[1] - 1) * head_stride
    rows = last // row + x.shape[2] // block
    return x.as_strided((rows, row), (row, 1)), batch_stride // row, head_stride // row


def _gather(x: Tensor, blocks: Tensor, block: int) -> Tensor:
    """Copy listed blocks: ``[B or 1, H, Tk, D]`` and int64 ``[B, H, NQ, L]`` give ``[B * H * NQ, 1, L * block, D]``."""
    batch, heads, num_queries, length = blocks.shape
    table = _block_table(x, block)
    if table is None:
        x = x.contiguous()
        table = _block_table(x, block)
        assert table is not None
    rows, batch_stride, head_stride = table
    base = torch.arange(heads).view(1, heads, 1, 1) * head_stride
    if batch_stride:
        base = base + torch.arange(batch).view(batch, 1, 1, 1) * batch_stride
    picked = rows.index_select(0, (blocks + base).flatten())
    return picked.view(batch * heads * num_queries, 1, length * block, x.shape[3])


def block_sparse_attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attend as :func:`.naive.block_sparse_attention_naive` does (same arguments), without gradients.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B or 1, H, Tk, D]``; fastest when the tokens of a head are contiguous.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]`` or None.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.
        with_lse: also compute the log-sum-exp (costs a second product).

    Returns:
        Output ``[B, H, Tq, D]`` and log-sum-exp fp32 ``[B, H, Tq]`` or None.
    """
    batch, heads, tokens, dim = q.shape
    num_queries = tokens // q_block
    longest, shortest = (int(x) for x in (counts.max(), counts.min())) if counts.numel() else (0, 0)
    if longest == 0:
        lse = q.new_full(q.shape[:3], float("-inf"), dtype=torch.float32) if with_lse else None
        return torch.zeros(q.shape, dtype=q.dtype), lse
    lists = lists[..., :longest]
    mask = None
    if shortest < longest:
        listed = torch.arange(longest) < counts[..., None]
        # A block that is listed anyway stands in for missing entries: others may be uninitialised memory.
        lists = torch.where(listed, lists, torch.where(counts[..., None] > 0, lists[..., :1], 0))
        mask = listed[..., None].expand(*listed.shape, kv_block).flatten(3)
    blocks = lists.expand(batch, heads, num_queries, longest).long()
    queries = q.reshape(batch * heads * num_queries, 1, q_block, dim)
    keys, values = _gather(k, blocks, kv_block), _gather(v, blocks, kv_block)
    if kv_sizes is not None:
        within = (torch.arange(kv_block) < kv_sizes[blocks][..., None]).flatten(3)
        rows = within.reshape(-1, 1, longest * kv_block, 1)
        keys, values = keys.masked_fill(~rows, 0.0), values.masked_fill(~rows, 0.0)
        mask = within if mask is None else mask & within
    if mask is not None:
        mask = mask.expand(batch, heads, num_queries, -1).reshape(-1, 1, 1, longest * kv_block)
        empty = ~mask.any(dim=-1, keepdim=True)
        # An empty row attends to everything and is set to 0 afterwards, so that no NaN arises.
        mask = mask | empty
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    if mask is not None:
        out = out.masked_fill(empty, 0.0)
    lse = None
    if with_lse:
        logits = queries.float() @ keys.float().transpose(-1, -2) * scale
        if mask is not None:
            logits = logits.masked_fill(~mask | empty, float("-inf"))
        lse = torch.logsumexp(logits, dim=-1).view(batch, heads, tokens)
    return out.view(batch, heads, tokens, dim), lse
