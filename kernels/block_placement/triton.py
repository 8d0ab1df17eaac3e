"""One kernel for the placement. A program serves one head and one part, so nothing but its own threads must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from . import Part, Stage

_CHUNK = 1024
_PARTS = 2


@triton.jit
def _entries(
    start, lists_ptr, counts_ptr, l_b, l_h, l_q, l_k, c_b, c_h, c_q, h, queries, length, total, frame, first, last,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """A piece of a head's lists: offsets into a contiguous output, blocks, what is listed, and what of it is ours."""
    at = start + tl.arange(0, CHUNK)
    column = at % length
    row = at // length
    b = (row // queries).to(tl.int64)
    q = row % queries
    inside = at < total
    count = tl.load(counts_ptr + b * c_b + h * c_h + q * c_q, mask=inside, other=0)
    listed = inside & (column < count)
    block = tl.load(lists_ptr + b * l_b + h * l_h + q.to(tl.int64) * l_q + column * l_k, mask=listed, other=0)
    ours = listed & (block % frame >= first) & (block % frame < last)
    heads = tl.num_programs(0)
    offset = ((b * heads + h) * queries + q) * length + column
    return offset, block, inside & (column >= count), ours


@triton.jit(
    do_not_specialize=[
        "queries", "length", "total", "none", "places", "frame", "clock", "lately", "span",
        "first_1", "last_1", "start_1", "stop_1", "first_0", "last_0", "start_0", "stop_0",
        "l_b", "l_h", "l_q", "l_k", "c_b", "c_h", "c_q",
    ]
)  # fmt: skip
def _place_kernel(
    lists_ptr, counts_ptr, held_ptr, used_ptr, place_ptr, victims_ptr, fresh_ptr, out_ptr,
    l_b, l_h, l_q, l_k, c_b, c_h, c_q, queries, length, total, none, places, frame, clock, lately, span,
    first_0, last_0, start_0, stop_0, first_1, last_1, start_1, stop_1, CHUNK: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    one = tl.program_id(1) == 0
    first = tl.where(one, first_0, first_1)
    last = tl.where(one, last_0, last_1)
    start = tl.where(one, start_0, start_1)
    stop = tl.where(one, stop_0, stop_1)
    head = h.to(tl.int64)
    held_ptr += head * (places + 1) + 1
    used_ptr += head * (places + 1) + 1
    place_ptr += head * (none + 1)
    victims_ptr += head * places
    fresh_ptr += head * places
    # What is here already is in use.
    for i in range(0, total, CHUNK):
        offset, block, past, ours = _entries(
            i, lists_ptr, counts_ptr, l_b, l_h, l_q, l_k, c_b, c_h, c_q, head, queries, length, total, frame, first,
            last, CHUNK,
        )  # fmt: skip
        place = tl.load(place_ptr + block, mask=ours, other=0, cache_modifier=".cg")
        tl.store(used_ptr + place - 1, clock, mask=ours & (place > 0))
    tl.debug_barrier()
    # All other places, roughly the oldest first: never or long not used, not used lately, used lately.
    free = 0
    above = -1
    for age in tl.static_range(3):
        below = tl.where(age == 0, tl.maximum(lately - span, 0), tl.where(age == 1, lately, clock - 1))
        for i in range(start, stop, CHUNK):
            at = i + tl.arange(0, CHUNK)
            used = tl.load(used_ptr + at, mask=at < stop, other=clock, cache_modifier=".cg")
            mine = (used > above) & (used <= below)
            rank = free + tl.cumsum(mine.to(tl.int32), 0) - 1
            tl.store(victims_ptr + start + rank, at, mask=mine)
            free += tl.sum(mine.to(tl.int32), 0)
            if age == 0:
                tl.store(fresh_ptr + at, tl.full([CHUNK], -1, tl.int32), mask=at < stop)
        above = tl.maximum(above, below)
    tl.debug_barrier()
    # Whoever first writes -1 over a block's 0 gives it a place.
    taken = 0
    for i in range(0, total, CHUNK):
        offset, block, past, ours = _entries(
            i, lists_ptr, counts_ptr, l_b, l_h, l_q, l_k, c_b, c_h, c_q, head, queries, length, total, frame, first,
            last, CHUNK,
        )  # fmt: skip
        absent = ours & (tl.load(place_ptr + block, mask=ours, other=1, cache_modifier=".cg") == 0)
        before = tl.atomic_xchg(place_ptr + block, tl.full([CHUNK], -1, tl.int32), mask=absent)
        mine = absent & (before == 0)
        rank = taken + tl.cumsum(mine.to(tl.int32), 0) - 1
        taken += tl.sum(mine.to(tl.int32), 0)
        target = tl.load(victims_ptr + start + rank, mask=mine, other=0, cache_modifier=".cg")
        gone = tl.load(held_ptr + target, mask=mine, other=0, cache_modifier=".cg")
        tl.store(place_ptr + gone, tl.zeros([CHUNK], tl.int32), mask=mine & (gone < none))
        tl.debug_barrier()  # every thread's -1 comes before any place
        tl.store(held_ptr + target, block, mask=mine)
        tl.store(used_ptr + target, clock, mask=mine)
        tl.store(place_ptr + block, target + 1, mask=mine)
        tl.store(fresh_ptr + target, block, mask=mine)
        tl.debug_barrier()
    for i in range(0, total, CHUNK):
        offset, block, past, ours = _entries(
            i, lists_ptr, counts_ptr, l_b, l_h, l_q, l_k, c_b, c_h, c_q, head, queries, length, total, frame, first,
            last, CHUNK,
        )  # fmt: skip
        place = tl.load(place_ptr + block, mask=ours, other=1, cache_modifier=".cg") - 1
        tl.store(out_ptr + offset, tl.where(ours, place, 0), mask=ours | (past & one))


def place_blocks_triton(
    lists: Tensor, counts: Tensor, stage: Stage, parts: Sequence[Part], frame: int, clock: int, lately: int
) -> tuple[Tensor, Tensor]:
    """See :func:`.place_blocks`; at most two parts."""
    heads, places = stage.held.shape[0], stage.held.shape[1] - 1
    batch, _, queries, length = lists.shape
    out = torch.empty(lists.shape, dtype=torch.int32, device=lists.device)
    fresh = torch.empty(heads, places, dtype=torch.int32, device=lists.device)
    sizes = [number for part in (*parts, parts[0])[:_PARTS] for number in part]
    _place_kernel[(heads, len(parts))](
        lists, counts, *stage, torch.empty_like(fresh), fresh, out,
        *lists.stride(), *counts.stride(), queries, length, batch * queries * length, stage.place.shape[1] - 1, places,
        frame, clock, lately, 4 * (clock - lately), *sizes, CHUNK=_CHUNK,
    )  # fmt: skip
    return out, fresh
