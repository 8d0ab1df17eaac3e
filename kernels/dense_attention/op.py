"""The Triton kernel that copies keys and values of listed pages side by side, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 8192  # of a program, a tensor


@triton.jit
def _gather_kernel(
    k_ptr, v_ptr, slots_ptr, out_k_ptr, out_v_ptr, heads, count, stride_head, stride_page,
    SIZE: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(1).to(tl.int64)  # (group, head, place)
    place, head, group = entry % count, entry // count % heads, entry // count // heads
    slot = tl.load(slots_ptr + group * count + place).to(tl.int64)
    at = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = at < SIZE
    source = head * stride_head + slot * stride_page + at
    tl.store(out_k_ptr + entry * SIZE + at, tl.load(k_ptr + source, mask=inside), mask=inside)
    tl.store(out_v_ptr + entry * SIZE + at, tl.load(v_ptr + source, mask=inside), mask=inside)


def gather(keys: Tensor, values: Tensor, slots: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """See `gather_pages`; pages lie contiguous."""
    heads, _, _, dim = keys.shape
    groups, count = slots.shape
    out_k, out_v = (
        torch.empty(groups, heads, count * real, dim, dtype=x.dtype, device=x.device) for x in (keys, values)
    )
    size = real * dim
    grid = (triton.cdiv(size, _ELEMENTS), groups * heads * count)
    _gather_kernel[grid](
        keys, values, slots.contiguous(), out_k, out_v, heads, count, keys.stride(0), keys.stride(1),
        SIZE=size, ELEMENTS=_ELEMENTS,
    )  # fmt: skip
    return out_k, out_v
