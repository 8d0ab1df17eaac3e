"""Merge the lists of neighbouring blocks, so that one program serves up to eight small blocks of 10 tokens or so.

Blocks of a frame mostly list the same blocks (in the trained `tiny` model six lists of 42 merge to about 95 entries),
so a tile of 60 rows that walks the merged list reads a quarter of the memory that six tiles of 10 rows read, and fills
the matrix units as well. Every merged entry carries one bit for each block of the group: which of them list it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1024
# An entry holds an index in its low bits and the members above.
INDEX_BITS = 23
MEMBERS = 8
# Fewer programs than this leave multiprocessors idle: small blocks then keep a program each.
MIN_PROGRAMS = 512
# A merge walks one byte for every block of the other side: of a large pool of pages that takes longer than attention.
MOST_OTHERS = 1 << 15


class MergedLists(NamedTuple):
    """Lists of groups of blocks.

    Attributes:
        entries: int32 ``[Bl * Hl * groups, width]``, ascending; block index, plus ``1 << (23 + member)`` for every
            member of the group that lists it (or that it lists, in a transposed merge). Unused past the count.
        counts: int32 ``[Bl * Hl * groups]``.
    """

    entries: Tensor
    counts: Tensor


def group_size(block: int, blocks: int, others: int, planes: int) -> int:
    """Blocks that share a program: as many as fill a tile of 64 rows, 1 where that does not pay.

    Args:
        block: tokens of a block.
        blocks: blocks of a (batch, head) plane.
        others: blocks on the walked side.
        planes: batch * heads.
    """
    size = min(MEMBERS, 64 // block) if block <= 32 else 1
    enough = planes * triton.cdiv(blocks, max(size, 1)) >= MIN_PROGRAMS
    return size if enough and others <= MOST_OTHERS else 1


@triton.jit(
    do_not_specialize=[
        "l_sb",
        "l_sh",
        "l_st",
        "c_sb",
        "c_sh",
        "list_heads",
        "q_blocks",
        "kv_blocks",
        "row_bytes",
    ],
    do_not_specialize_on_alignment=["lists_ptr", "counts_ptr"],
)
def mark_kernel(
    lists_ptr, counts_ptr, words_ptr, l_sb, l_sh, l_st, c_sb, c_sh, list_heads, q_blocks, kv_blocks, row_bytes,
    GROUP: tl.constexpr, TRANSPOSED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: one list; sets its bit in the byte of every (group, listed block)."""
    program = tl.program_id(0)
    n = program % q_blocks
    plane = program // q_blocks
    h = (plane % list_heads).to(tl.int64)
    b = (plane // list_heads).to(tl.int64)
    count = tl.load(counts_ptr + b * c_sb + h * c_sh + n)
    list_base = lists_ptr + b * l_sb + h * l_sh + n.to(tl.int64) * l_st
    for start in range(0, count, CHUNK):
        place = start + tl.arange(0, CHUNK)
        block = tl.load(list_base + place, mask=place < count, other=-1)
        ok = (block >= 0) & (block < kv_blocks)
        if TRANSPOSED:
            groups = (kv_blocks + GROUP - 1) // GROUP
            group = block // GROUP
            column = n + tl.zeros([CHUNK], tl.int32)
            member = block - group * GROUP
        else:
            groups = (q_blocks + GROUP - 1) // GROUP
            group = n // GROUP + tl.zeros([CHUNK], tl.int32)
            column = block
            member = n % GROUP + tl.zeros([CHUNK], tl.int32)
        byte = (plane.to(tl.int64) * groups + group) * row_bytes + column
        bit = (1 << (member + (column % 4) * 8)).to(tl.int32)
        tl.atomic_or(words_ptr + byte // 4, bit, mask=ok, sem="relaxed")


@triton.jit(do_not_specialize=["width", "row_bytes"])
def compact_kernel(bytes_ptr, entries_ptr, counts_ptr, width, row_bytes, INDEX_BITS: tl.constexpr, CHUNK: tl.constexpr):
    """One program: one group; packs its non-zero bytes, ascending."""
    row = tl.program_id(0).to(tl.int64)
    taken = 0
    for start in range(0, row_bytes, CHUNK):
        index = start + tl.arange(0, CHUNK)
        bits = tl.load(bytes_ptr + row * row_bytes + index, mask=index < row_bytes, other=0).to(tl.int32)
        listed = (bits != 0).to(tl.int32)
        place = taken + tl.cumsum(listed, 0) - 1
        tl.store(entries_ptr + row * width + place, index | (bits << INDEX_BITS), mask=bits != 0)
        taken += tl.sum(listed, 0)
    tl.store(counts_ptr + row, taken)


def merge_lists(lists: Tensor, counts: Tensor, kv_blocks: int, group: int, transposed: bool) -> MergedLists:
    """Merge the lists of every ``group`` neighbouring query blocks, or the inverse lists of key blocks.

    Args:
        lists: int32 ``[Bl, Hl, NQ, L]``, distinct entries per list.
        counts: int32 ``[Bl, Hl, NQ]``.
        kv_blocks: number of key blocks NK.
        group: blocks of a group, at most 8.
        transposed: groups of key blocks that list query blocks, instead of query blocks that list key blocks.

    Returns:
        The merged lists; deterministic.
    """
    batch, heads, q_blocks, length = lists.shape
    grouped, others = (kv_blocks, q_blocks) if transposed else (q_blocks, kv_blocks)
    rows = batch * heads * triton.cdiv(grouped, group)
    row_bytes = triton.cdiv(others, 16) * 16
    width = max(1, others if transposed else min(others, group * length))
    marks = torch.zeros((rows, row_bytes), dtype=torch.uint8, device=lists.device)
    entries = torch.empty((rows, width), dtype=torch.int32, device=lists.device)
    merged = torch.empty(rows, dtype=torch.int32, device=lists.device)
    mark_kernel[(batch * heads * q_blocks,)](
        lists, counts, marks.view(torch.int32), lists.stride(0), lists.stride(1), lists.stride(2),
        counts.stride(0), counts.stride(1), heads, q_blocks, kv_blocks, row_bytes,
        GROUP=group, TRANSPOSED=transposed, CHUNK=64, num_warps=1,
    )  # fmt: skip
    compact_kernel[(rows,)](marks, entries, merged, width, row_bytes, INDEX_BITS=INDEX_BITS, CHUNK=CHUNK, num_warps=1)
    return MergedLists(entries, merged)
