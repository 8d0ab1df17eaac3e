"""Top-k of every row of scores without sorting: find the k-th largest value by bisection on its bits, then compact.

The compaction walks the row from left to right, so lists come out ascending; of equal scores at the threshold the
lowest indices win, so exactly k are chosen. Rows of up to 4,096 scores stay in registers (two compiled sizes); longer
ones are read once a bit. Beyond that no size is a compile-time constant: a growing history does not recompile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .naive import score_chunks

CHUNK = 512
ROWS_IN_REGISTERS = {1024: 1, 4096: 4}  # longest row -> warps
_LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _ordered_keys(row_ptr, start, limit, CHUNK: tl.constexpr):
    """Scores as integers of the same order; the lowest integer where not allowed (past ``limit``, -inf, NaN)."""
    index = start + tl.arange(0, CHUNK)
    score = tl.load(row_ptr + index, mask=index < limit, other=float("-inf"))
    # -0.0 and 0.0 are equal scores.
    score = score + 0.0
    bits = score.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score > float("-inf"), key, _LOWEST), index


@triton.jit(do_not_specialize=["heads", "queries", "num_keys", "k", "limit_sb", "out_queries", "out_first"])
def select_kernel(
    scores_ptr, limit_ptr, lists_ptr, counts_ptr, heads, queries, num_keys, k, limit_sb, out_queries, out_first,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: one row of scores."""
    row = tl.program_id(0).to(tl.int64)
    query = row % queries
    plane = row // queries
    row_ptr = scores_ptr + row * num_keys
    limit = tl.load(limit_ptr + (plane // heads) * limit_sb + out_first + query)
    limit = tl.minimum(limit, num_keys)

    allowed = 0
    not_negative = 0
    for start in range(0, limit, CHUNK):
        key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
        allowed += tl.sum((key > _LOWEST).to(tl.int32), 0)
        not_negative += tl.sum((key >= 0).to(tl.int32), 0)
    count = tl.minimum(k, allowed)

    # Up to k allowed blocks: all lie above the threshold. Else the largest threshold that k keys reach, bit by bit.
    threshold = tl.full([], _LOWEST, tl.int32)
    above = count
    if allowed > k:
        threshold = tl.where(not_negative >= k, 0, threshold)
        bit = 1 << 30
        for _ in range(0, 31):
            candidate = threshold + bit
            reached = 0
            for start in range(0, limit, CHUNK):
                key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
                reached += tl.sum((key >= candidate).to(tl.int32), 0)
            threshold = tl.where(reached >= k, candidate, threshold)
            bit = bit >> 1
        above = 0
        for start in range(0, limit, CHUNK):
            key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
            above += tl.sum((key > threshold).to(tl.int32), 0)
    ties = count - above

    out_row = plane * out_queries + out_first + query
    taken = 0
    tied = 0
    for start in range(0, limit, CHUNK):
        key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
        equal = (key == threshold).to(tl.int32)
        rank = tied + tl.cumsum(equal, 0)
        take = (key > threshold) | ((equal > 0) & (rank <= ties))
        place = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(lists_ptr + out_row * k + place, index, mask=take)
        taken += tl.sum(take.to(tl.int32), 0)
        tied += tl.sum(equal, 0)
    tl.store(counts_ptr + out_row, count)


@triton.jit(do_not_specialize=["heads", "queries", "num_keys", "k", "limit_sb", "out_queries", "out_first"])
def select_short_kernel(
    scores_ptr, limit_ptr, lists_ptr, counts_ptr, heads, queries, num_keys, k, limit_sb, out_queries, out_first,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: one row of at most CHUNK scores, read once."""
    row = tl.program_id(0).to(tl.int64)
    query = row % queries
    plane = row // queries
    limit = tl.load(limit_ptr + (plane // heads) * limit_sb + out_first + query)
    limit = tl.minimum(limit, num_keys)
    key, index = _ordered_keys(scores_ptr + row * num_keys, 0, limit, CHUNK)
    allowed = tl.sum((key > _LOWEST).to(tl.int32), 0)
    count = tl.minimum(k, allowed)
    threshold = tl.full([], _LOWEST, tl.int32)
    above = count
    if allowed > k:
        threshold = tl.where(tl.sum((key >= 0).to(tl.int32), 0) >= k, 0, threshold)
        bit = 1 << 30
        for _ in range(0, 31):
            candidate = threshold + bit
            threshold = tl.where(tl.sum((key >= candidate).to(tl.int32), 0) >= k, candidate, threshold)
            bit = bit >> 1
        above = tl.sum((key > threshold).to(tl.int32), 0)
    equal = (key == threshold).to(tl.int32)
    take = (key > threshold) | ((equal > 0) & (tl.cumsum(equal, 0) <= count - above))
    place = tl.cumsum(take.to(tl.int32), 0) - 1
    out_row = plane * out_queries + out_first + query
    tl.store(lists_ptr + out_row * k + place, index, mask=take)
    tl.store(counts_ptr + out_row, count)


def select_blocks_triton(
    q_pooled: Tensor, k_pooled: Tensor, k: int, limit: Tensor, first: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Select as :func:`.naive.select_blocks_naive` does; ties go to the lowest index.

    Args:
        q_pooled: fp32 ``[B, H, NQ, D]``.
        k_pooled: fp32 ``[B or 1, H, NK, D]``.
        k: most blocks to select.
        limit: int32 ``[B or 1, NQ]``, one past the last allowed key block.
        first: int32 ``[B or 1, NQ]`` or None, first allowed key block.
        mask: bool, broadcastable to ``[B, H, NQ, NK]``, or None; False forbids.

    Returns:
        lists int32 ``[B, H, NQ, k]``, ascending, 0 past the count; counts int32 ``[B, H, NQ]``.
    """
    batch, heads, num_queries, _ = q_pooled.shape
    num_keys = k_pooled.shape[2]
    lists = torch.zeros((batch, heads, num_queries, k), dtype=torch.int32, device=q_pooled.device)
    counts = torch.zeros((batch, heads, num_queries), dtype=torch.int32, device=q_pooled.device)
    if lists.numel() == 0 or num_keys == 0:
        return lists, counts
    limit = limit.contiguous()
    for part, scores in score_chunks(q_pooled, k_pooled, first, mask):
        queries = scores.shape[2]
        size = next((n for n in ROWS_IN_REGISTERS if num_keys <= n), None)
        kernel, chunk, warps = (select_kernel, CHUNK, 1) if size is None else (
            select_short_kernel, size, ROWS_IN_REGISTERS[size]
        )  # fmt: skip
        kernel[(batch * heads * queries,)](
            scores, limit, lists, counts, heads, queries, num_keys, k,
            num_queries if limit.shape[0] > 1 else 0, num_queries, part.start,
            CHUNK=chunk, num_warps=warps,
        )  # fmt: skip
    return lists, counts
