"""Top-k of every row of scores without sorting: find the k-th largest value bit by bit, then compact.

The first chunk of a row stays in registers through all passes; longer rows read the rest again. The compaction walks
the row from left to right, so lists come out ascending; of equal scores at the threshold the lowest indices win, so
exactly k are chosen. No size is a compile-time constant: a growing history does not recompile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .naive import score_chunks

# Many rows: a warp each, so that most of them run at once. Few rows (an interactive step): eight warps each.
MANY_ROWS = 8192
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


@triton.jit
def _at_least(kept, row_ptr, low, limit, bound, CHUNK: tl.constexpr):
    """How many keys of a row reach a bound."""
    reached = tl.sum((kept >= bound).to(tl.int32), 0)
    for start in range(low + CHUNK, limit, CHUNK):
        key, _ = _ordered_keys(row_ptr, start, limit, CHUNK)
        reached += tl.sum((key >= bound).to(tl.int32), 0)
    return reached


@triton.jit
def _take(key, index, threshold, ties, taken, tied, list_ptr):
    """Store the indices of a chunk that are above the threshold, and of those at it as long as ``ties`` lasts."""
    equal = (key == threshold).to(tl.int32)
    rank = tied + tl.cumsum(equal, 0)
    take = (key > threshold) | ((equal > 0) & (rank <= ties))
    place = taken + tl.cumsum(take.to(tl.int32), 0) - 1
    tl.store(list_ptr + place, index, mask=take)
    return taken + tl.sum(take.to(tl.int32), 0), tied + tl.sum(equal, 0)


@triton.jit(
    do_not_specialize=["heads", "queries", "num_keys", "k", "limit_sb", "first_sb", "out_queries", "out_first"],
    do_not_specialize_on_alignment=["scores_ptr", "limit_ptr", "first_ptr", "lists_ptr", "counts_ptr"],
)
def select_kernel(
    scores_ptr, limit_ptr, first_ptr, lists_ptr, counts_ptr,
    heads, queries, num_keys, k, limit_sb, first_sb, out_queries, out_first,
    HAS_FIRST: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: one row of scores."""
    row = tl.program_id(0).to(tl.int64)
    query = row % queries
    plane = row // queries
    row_ptr = scores_ptr + row * num_keys
    limit = tl.load(limit_ptr + (plane // heads) * limit_sb + out_first + query)
    limit = tl.minimum(limit, num_keys)
    low = 0
    if HAS_FIRST:
        low = tl.maximum(tl.load(first_ptr + (plane // heads) * first_sb + out_first + query), 0)

    kept, kept_index = _ordered_keys(row_ptr, low, limit, CHUNK)
    best = tl.max(kept, 0)
    for start in range(low + CHUNK, limit, CHUNK):
        key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
        best = tl.maximum(best, tl.max(key, 0))
    allowed = _at_least(kept, row_ptr, low, limit, _LOWEST + 1, CHUNK)
    count = tl.minimum(k, allowed)

    # Up to k allowed blocks: all lie above the threshold. Else the largest threshold that k keys reach.
    threshold = tl.full([], _LOWEST, tl.int32)
    above = count
    if allowed > k:
        threshold = tl.where(_at_least(kept, row_ptr, low, limit, 0, CHUNK) >= k, 0, threshold)
        bit = tl.full([], 1 << 30, tl.int32)
        while bit > 0:
            candidate = threshold + bit
            bit = bit >> 1
            if candidate <= best:
                reached = _at_least(kept, row_ptr, low, limit, candidate, CHUNK)
                threshold = tl.where(reached >= k, candidate, threshold)
                # Exactly k keys: lower bits would not change which.
                bit = tl.where(reached == k, 0, bit)
        above = _at_least(kept, row_ptr, low, limit, threshold + 1, CHUNK)
    ties = count - above

    out_row = plane * out_queries + out_first + query
    list_ptr = lists_ptr + out_row * k
    taken, tied = _take(kept, kept_index, threshold, ties, 0, 0, list_ptr)
    for start in range(low + CHUNK, limit, CHUNK):
        key, index = _ordered_keys(row_ptr, start, limit, CHUNK)
        taken, tied = _take(key, index, threshold, ties, taken, tied, list_ptr)
    for start in range(count, k, 128):
        place = start + tl.arange(0, 128)
        tl.store(list_ptr + place, tl.zeros([128], tl.int32), mask=place < k)
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
    lists = torch.empty((batch, heads, num_queries, k), dtype=torch.int32, device=q_pooled.device)
    counts = torch.empty((batch, heads, num_queries), dtype=torch.int32, device=q_pooled.device)
    if lists.numel() == 0 or num_keys == 0:
        return lists.zero_(), counts.zero_()
    limit = limit.contiguous()
    bound = limit if first is None else first.contiguous()
    for part, scores in score_chunks(q_pooled, k_pooled, None, mask):
        rows = batch * heads * scores.shape[2]
        many = rows >= MANY_ROWS
        select_kernel[(rows,)](
            scores, limit, bound, lists, counts, heads, scores.shape[2], num_keys, k,
            num_queries if limit.shape[0] > 1 else 0, num_queries if bound.shape[0] > 1 else 0, num_queries, part.start,
            HAS_FIRST=first is not None, CHUNK=1024 if many else 4096, num_warps=1 if many else 8,
        )  # fmt: skip
    return lists, counts
