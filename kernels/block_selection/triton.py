"""Scores of pooled features, and top-k of every row without sorting: find the k-th largest value, then compact.

The threshold is found two bits at a time. The first chunk of a row stays in registers through all passes; longer rows
read the rest again. The compaction walks the row from left to right, so lists come out ascending; of equal scores at
the threshold the lowest indices win, so exactly k are chosen. No size is a compile-time constant: as a history grows
nothing is compiled but, once each, the variants for rows longer than ``TINY`` and ``SHORT``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .naive import MAX_SCORES, score_chunks, select_blocks_naive

# Many rows: a warp each, so that most of them run at once. Few rows (an interactive step): ROW_WARPS each, by their
# number of keys (measured on an H200: of 4,096 values a row, 4 warps are faster than 8).
MANY_ROWS, TINY, SHORT, LONG = 8192, 1024, 4096, 16384
ROW_WARPS = (8, 4, 8)
# Key blocks of a program of scores, channels that it multiplies at a time, warps, steps in flight.
SCORE_KEYS, SCORE_STEP, SCORE_WARPS, SCORE_STAGES = 64, 16, 4, 3
# Counts of keys are packed in fields of 21 bits.
MAX_KEYS = 2**21 - 1
_LOWEST = tl.constexpr(-(2**31))
_FIELD = tl.constexpr(2**21 - 1)


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
def _reached(key, low, middle, high):
    """How many keys reach each of three bounds, in fields of 21 bits."""
    one = tl.full([], 1, tl.int64)
    packed = tl.where(key >= low, one, 0) + tl.where(key >= middle, one << 21, 0) + tl.where(key >= high, one << 42, 0)
    return tl.sum(packed, 0)


@triton.jit
def _count(kept, row_ptr, first, limit, low, middle, high, CHUNK: tl.constexpr):
    """``_reached`` of a whole row."""
    packed = _reached(kept, low, middle, high)
    for start in range(first + CHUNK, limit, CHUNK):
        key, _ = _ordered_keys(row_ptr, start, limit, CHUNK)
        packed += _reached(key, low, middle, high)
    return (packed & _FIELD).to(tl.int32), ((packed >> 21) & _FIELD).to(tl.int32), (packed >> 42).to(tl.int32)


@triton.jit
def _take(key, index, threshold, ties, taken, tied, list_ptr):
    """Store the indices of a chunk that are above the threshold, and of those at it as long as ``ties`` lasts."""
    take = key > threshold
    if ties > 0:
        equal = (key == threshold).to(tl.int32)
        take = take | ((equal > 0) & (tied + tl.cumsum(equal, 0) <= ties))
        tied += tl.sum(equal, 0)
    place = taken + tl.cumsum(take.to(tl.int32), 0) - 1
    tl.store(list_ptr + place, index, mask=take)
    return taken + tl.sum(take.to(tl.int32), 0), tied


@triton.jit(
    do_not_specialize=["heads", "queries", "num_keys", "q_sb", "q_sh", "q_sn", "k_sb", "k_sh", "k_sn"],
    do_not_specialize_on_alignment=["scores_ptr"],
)
def score_kernel(
    q_ptr, k_ptr, scores_ptr, heads, queries, num_keys, q_sb, q_sh, q_sn, k_sb, k_sh, k_sn,
    D: tl.constexpr, STEP: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: scores of ``ROWS`` query blocks and ``KEYS`` key blocks of one (batch, head)."""
    plane = tl.program_id(1).to(tl.int64)
    batch, head = plane // heads, plane % heads
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    # Strides that are known to be multiples of 4 make loads of 16 bytes.
    q_ptr += (batch * q_sb + head * q_sh) * UNIT
    k_ptr += (batch * k_sb + head * k_sh) * UNIT
    scores = tl.zeros([ROWS, KEYS], tl.float32)
    # Some channels at a time: so few registers that all programs of a short history run at once.
    for start in range(0, D, STEP):
        channel = start + tl.arange(0, STEP)
        within = (channel < D)[None, :]
        q = q_ptr + row.to(tl.int64)[:, None] * (q_sn * UNIT) + channel[None, :]
        k = k_ptr + key.to(tl.int64)[:, None] * (k_sn * UNIT) + channel[None, :]
        q = tl.load(q, mask=(row < queries)[:, None] & within, other=0.0).to(tl.float32)
        k = tl.load(k, mask=(key < num_keys)[:, None] & within, other=0.0).to(tl.float32)
        scores = tl.dot(q, tl.trans(k), scores, input_precision=PRECISION)
    to = scores_ptr + (plane * queries + row)[:, None] * num_keys + key[None, :]
    tl.store(to, scores, mask=(row < queries)[:, None] & (key < num_keys)[None, :])


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
    # Up to k allowed blocks: all lie above the threshold. Else the largest threshold that k keys reach.
    threshold = tl.full([], _LOWEST, tl.int32)
    allowed, _, _ = _count(kept, row_ptr, low, limit, _LOWEST + 1, _LOWEST + 1, _LOWEST + 1, CHUNK)
    count = tl.minimum(k, allowed)
    above = count
    if allowed > k:
        # First down to a 16th of the best score, if that is positive: the k best of thousands are seldom less.
        step = tl.full([], 1 << 21, tl.int32)
        high = tl.maximum(best, 1 << 26) - ((1 << 23) - 1)
        middle, lowest = high - (1 << 23), high - (3 << 23)
        one, two, three = _count(kept, row_ptr, low, limit, lowest, middle, high, CHUNK)
        reached = tl.where(three >= k, three, tl.where(two >= k, two, one))
        threshold = tl.where(three >= k, high, tl.where(two >= k, middle, lowest))
        step = tl.where(two >= k, step, step << 1)
        if one < k:
            reached, _, _ = _count(kept, row_ptr, low, limit, 0, 0, 0, CHUNK)
            threshold = tl.where(reached >= k, 0, _LOWEST)
            step = tl.full([], 1 << 29, tl.int32)
        step = tl.where(reached == k, 0, step)
        # At least k keys reach the threshold, fewer than k a threshold of four steps more.
        while step > 0:
            following = tl.where(step == 2, 1, step >> 2)
            if threshold + step <= best:
                at = threshold + step
                one, two, three = _count(kept, row_ptr, low, limit, at, at + step, at + 2 * step, CHUNK)
                more = (one >= k).to(tl.int32) + (two >= k).to(tl.int32) + (three >= k).to(tl.int32)
                threshold += more * step
                reached = tl.where(more == 3, three, tl.where(more == 2, two, tl.where(more == 1, one, reached)))
                # Exactly k keys: lower bits would not change which.
                following = tl.where(reached == k, 0, following)
            step = following
        if reached == k:
            threshold -= 1
        else:
            above, _, _ = _count(kept, row_ptr, low, limit, threshold + 1, threshold + 1, threshold + 1, CHUNK)
    ties = count - above

    out_row = plane * out_queries + out_first + query
    list_ptr = lists_ptr + out_row * k
    none = tl.full([], 0, tl.int32)
    taken, tied = _take(kept, kept_index, threshold, ties, none, none, list_ptr)
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
    if num_keys > MAX_KEYS:
        return select_blocks_naive(q_pooled, k_pooled, k, limit, first, mask)
    limit = limit.contiguous()
    bound = limit if first is None else first.contiguous()
    few = batch * heads * num_queries < MANY_ROWS and batch * heads * num_queries * num_keys <= MAX_SCORES
    if few and mask is None:
        parts = iter([(slice(0, num_queries), _scores(q_pooled, k_pooled))])
    else:
        parts = score_chunks(q_pooled, k_pooled, None, mask)
    for part, scores in parts:
        rows = batch * heads * scores.shape[2]
        if rows >= MANY_ROWS:
            chunk, warps = 1024, 1
        else:
            chunk, warps = next(
                (chunk, warps)
                for chunk, warps in zip((TINY, SHORT, LONG), ROW_WARPS, strict=True)
                if num_keys <= chunk or chunk == LONG
            )
        select_kernel[(rows,)](
            scores, limit, bound, lists, counts, heads, scores.shape[2], num_keys, k,
            num_queries if limit.shape[0] > 1 else 0, num_queries if bound.shape[0] > 1 else 0, num_queries, part.start,
            HAS_FIRST=first is not None, CHUNK=chunk, num_warps=warps,
        )  # fmt: skip
    return lists, counts


def _scores(q_pooled: Tensor, k_pooled: Tensor) -> Tensor:
    """Products of few queries with many keys, which libraries spread over too few programs: fp32 ``[B, H, NQ, NK]``."""
    q_pooled, k_pooled = (x if x.stride(3) == 1 else x.contiguous() for x in (q_pooled, k_pooled))
    batch, heads, num_queries, dim = q_pooled.shape
    num_keys = k_pooled.shape[2]
    scores = torch.empty((batch, heads, num_queries, num_keys), dtype=torch.float32, device=q_pooled.device)
    strides = [*q_pooled.stride()[:3], k_pooled.stride(0) if k_pooled.shape[0] > 1 else 0, *k_pooled.stride()[1:3]]
    unit = 1 if any(stride % 4 for stride in strides) else 4
    exact = torch.get_float32_matmul_precision() == "highest"
    score_kernel[(triton.cdiv(num_keys, SCORE_KEYS), batch * heads, triton.cdiv(num_queries, 32))](
        q_pooled, k_pooled, scores, heads, num_queries, num_keys, *(stride // unit for stride in strides),
        D=dim, UNIT=unit, STEP=min(SCORE_STEP, max(16, triton.next_power_of_2(dim))), ROWS=32, KEYS=SCORE_KEYS,
        PRECISION="tf32x3" if exact else "tf32", num_warps=SCORE_WARPS, num_stages=SCORE_STAGES,
    )  # fmt: skip
    return scores
