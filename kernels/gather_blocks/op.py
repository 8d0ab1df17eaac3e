"""The Triton kernel: a fixed number of programs walk over the list; copies from the host can run beside other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from . import Source

_PROGRAMS = 2048


@triton.jit
def _copy(k_from, v_from, k_to, v_to, k_scale, v_scale, SIZE: tl.constexpr, STEP: tl.constexpr, SCALED: tl.constexpr):
    """One block of keys and of values; both are read before either is written, to have more reads under way."""
    for start in range(0, SIZE, STEP):
        at = start + tl.arange(0, STEP)
        k = tl.load(k_from + at, mask=at < SIZE)
        v = tl.load(v_from + at, mask=at < SIZE)
        if SCALED:
            k = k.to(tl.float32) * k_scale
            v = v.to(tl.float32) * v_scale
        tl.store(k_to + at, k.to(k_to.dtype.element_ty), mask=at < SIZE)
        tl.store(v_to + at, v.to(v_to.dtype.element_ty), mask=at < SIZE)


@triton.jit(do_not_specialize=["listed", "pages", "frames"])
def _gather_kernel(
    blocks_ptr, where_ptr, k_ptr, v_ptr, scales_ptr, segments_ptr, k_out_ptr, v_out_ptr, count_ptr,
    head_stride, listed, pages, frames, layer, layers, per_segment,
    HEADS: tl.constexpr, PARTS: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr, SCALED: tl.constexpr,
    HOST: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    total = HEADS * listed
    for turn in range(0, tl.cdiv(total, tl.num_programs(0))):
        item = tl.program_id(0) + turn * tl.num_programs(0)
        head, place = (item // listed).to(tl.int64), item % listed
        block = tl.load(blocks_ptr + head * head_stride + place, mask=item < total, other=-1)
        if block >= 0:
            frame, part = block // PARTS, block % PARTS
            page = tl.load(where_ptr + frame).to(tl.int64)
            k_to, v_to = k_out_ptr + item.to(tl.int64) * SIZE, v_out_ptr + item.to(tl.int64) * SIZE
            k_scale, v_scale = 1.0, 1.0
            if SCALED:
                scale = scales_ptr + (head * frames + frame) * PARTS + part
                k_scale, v_scale = tl.load(scale), tl.load(scale + HEADS * frames * PARTS)
            if page >= 0:
                start = ((head * pages + page) * PARTS + part) * SIZE
                _copy(k_ptr + start, v_ptr + start, k_to, v_to, k_scale, v_scale, SIZE, STEP, SCALED)
            elif HOST:
                if COUNT:
                    tl.atomic_add(count_ptr, 1, sem="relaxed")
                page = -1 - page
                # Without the hint every thread would read one number at a time.
                segment = tl.multiple_of(tl.load(segments_ptr + page // per_segment).to(k_ptr.dtype), 16)
                start = (((page % per_segment * layers + layer) * 2 * HEADS + head) * PARTS + part) * SIZE
                _copy(segment + start, segment + start + HEADS * PARTS * SIZE, k_to, v_to,
                      k_scale, v_scale, SIZE, STEP, SCALED)  # fmt: skip


def gather(
    source: Source,
    blocks: Tensor,
    out: tuple[Tensor, Tensor],
    block: int,
    programs: int | None = None,
    count: Tensor | None = None,
) -> None:
    """See `gather_blocks`."""
    keys, host = source.keys, source.host
    heads, pages, tokens, dim = keys.shape
    listed, frames = blocks.shape[1], len(source.where)
    tensors = (keys, source.values, *out, *(() if source.scales is None else (source.scales,)))
    if not all(x.is_contiguous() for x in tensors) or blocks.stride(1) != 1:
        raise ValueError("gather_blocks: pages, scales and outputs must be contiguous")
    stride = blocks.stride(0) if blocks.shape[0] > 1 else 0
    size = block * dim
    grid = (max(1, min(programs or _PROGRAMS, heads * listed)),)
    some = source.where if source.scales is None else source.scales
    segments = source.where if host is None else host.addresses
    depth = 1 if host is None or not host.tensors else host.tensors[0].shape[1]
    _gather_kernel[grid](
        blocks, source.where, keys, source.values, some, segments, *out, source.where if count is None else count,
        stride, listed, pages, frames, 0 if host is None else host.layer, depth, 1 if host is None else host.pages,
        HEADS=heads, PARTS=tokens // block, SIZE=size, STEP=min(4096, triton.next_power_of_2(size)),
        SCALED=source.scales is not None, HOST=host is not None, COUNT=count is not None,
        num_warps=8 if size >= 4096 else 4,
    )  # fmt: skip
