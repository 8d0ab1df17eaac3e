"""Block-sparse attention for the CPU in torch's operators: gather the listed blocks, then one batched attention.

What `native.py` computes in place, for where that does not serve: no compiler, types other than fp32.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.nn import functional

# Gathered numbers held at once, keys and values each: 8 MiB of fp32, near the size of the caches.
_CHUNK = 1 << 21
_workspace = threading.local()


def _buffer(name: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """Memory that is kept from call to call: fresh pages cost more than filling them."""
    key = f"{name}_{like.dtype}"
    held = getattr(_workspace, key, None)
    if held is None or held.numel() < rows * columns:
        held = torch.empty(rows * columns, dtype=like.dtype)
        setattr(_workspace, key, held)
    return held[: rows * columns].view(rows, columns)


def _block_table(x: Tensor, block: int) -> tuple[Tensor, int, int]:
    """View ``x`` as a table with one row per block; also the steps of batch and head in rows (copies if it must)."""
    row = block * x.shape[3]
    batch_stride = x.stride(0) if x.shape[0] > 1 else 0
    head_stride = x.stride(1) if x.shape[1] > 1 else 0
    if x.stride(3) != 1 or x.stride(2) != x.shape[3] or batch_stride % row or head_stride % row:
        x = x.contiguous()
        return x.view(-1, row), (x.stride(0) // row if x.shape[0] > 1 else 0), x.stride(1) // row
    last = (x.shape[0] - 1) * batch_stride + (x.shape[1] - 1) * head_stride
    rows = last // row + x.shape[2] // block
    return x.as_strided((rows, row), (row, 1)), batch_stride // row, head_stride // row


def _table_and_rows(x: Tensor, blocks: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Table of the blocks of ``[B or 1, H, Tk, D]``; rows ``[B * H * NQ, L]`` in it of int64 ``[B, H, NQ, L]``."""
    table, batch_stride, head_stride = _block_table(x, block)
    batch, heads = blocks.shape[:2]
    base = torch.arange(heads).view(1, heads, 1, 1) * head_stride
    if batch_stride:
        base = base + torch.arange(batch).view(batch, 1, 1, 1) * batch_stride
    return table, (blocks + base).flatten(0, 2)


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
        k: ``[B or 1, H, Tk, D]``, in q's type or fp16; fastest when the tokens of a head are contiguous.
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
    shortest, longest = (int(x) for x in torch.aminmax(counts)) if counts.numel() else (0, 0)
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
    if kv_sizes is not None:
        within = (torch.arange(kv_block) < kv_sizes[blocks][..., None]).flatten(3)
        mask = within if mask is None else mask & within
    keys = longest * kv_block
    if mask is not None:
        mask = mask.expand(batch, heads, num_queries, keys).reshape(-1, keys)
    queries = q.reshape(batch * heads * num_queries, q_block, dim)
    out = torch.empty_like(queries)
    lse = torch.empty(queries.shape[:2], dtype=torch.float32) if with_lse else None
    (k_table, k_rows), (v_table, v_rows) = _table_and_rows(k, blocks, kv_block), _table_and_rows(v, blocks, kv_block)
    step = max(1, _CHUNK // (keys * dim))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        count = part.stop - part.start
        kept = [_buffer(name, count * longest, kv_block * dim, k) for name in ("keys", "values")]
        torch.index_select(k_table, 0, k_rows[part].flatten(), out=kept[0])
        torch.index_select(v_table, 0, v_rows[part].flatten(), out=kept[1])
        some_k, some_v = (x.view(count, keys, dim).to(q.dtype) for x in kept)
        allowed = None if mask is None else mask[part]
        if kv_sizes is not None and allowed is not None:
            # Rows past a block's size may be uninitialised memory.
            some_k.masked_fill_(~allowed[..., None], 0.0)
            some_v.masked_fill_(~allowed[..., None], 0.0)
        result, total = _attend(queries[part], some_k, some_v, allowed, scale, with_lse)
        out[part] = result
        if lse is not None and total is not None:
            lse[part] = total
    return out.view(batch, heads, tokens, dim), None if lse is None else lse.view(batch, heads, tokens)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of ``[N, rows, D]`` to ``[N, keys, D]``; ``allowed`` is bool ``[N, keys]``."""
    bias = empty = None
    if allowed is not None:
        empty = ~allowed.any(dim=-1)[:, None]
        # An empty row attends to everything and is set to 0 afterwards, so that no NaN arises.
        bias = torch.zeros(allowed.shape, dtype=q.dtype).masked_fill_(~(allowed | empty), float("-inf"))[:, None]
    out = functional.scaled_dot_product_attention(
        q[:, None], k[:, None], v[:, None], attn_mask=None if bias is None else bias[:, None], scale=scale
    )[:, 0]
    lse = None
    if with_lse:
        logits = torch.bmm(q.float(), k.float().transpose(1, 2)) * scale
        lse = torch.logsumexp(logits if bias is None else logits + bias, dim=-1)
    if empty is not None:
        out = out.masked_fill(empty[..., None], 0.0)
        lse = None if lse is None else lse.masked_fill(empty, float("-inf"))
    return out, lse
