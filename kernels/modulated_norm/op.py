"""The Triton kernel: a program takes whole tokens, one of Wan's width.

Sums run in fp32, the variance is that of the differences to the mean.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 2048  # of a program


@triton.jit
def _fused_kernel(
    x_ptr, gate_ptr, change_ptr, shift_ptr, scale_ptr, out_ptr, normed_ptr,
    total, frames, tokens, x_row, x_frame, gate_frame, shift_frame, scale_frame,
    W: tl.constexpr, W_PAD: tl.constexpr, ROWS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, W_PAD)
    frame = token // tokens % frames
    inside = (token < total)[:, None] & (channel < W)[None, :]
    row = token // tokens // frames * x_row + frame * x_frame + token % tokens * W
    x = tl.load(x_ptr + row[:, None] + channel[None, :], mask=inside, other=0.0)
    here = token[:, None] * W + channel[None, :]
    if RESIDUAL:
        gate = tl.load(gate_ptr + (frame * gate_frame)[:, None] + channel[None, :], mask=inside, other=0.0)
        x += gate * tl.load(change_ptr + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + here, x, mask=inside)
    away = tl.where(inside, x - (tl.sum(x, 1) / W)[:, None], 0.0)
    away *= (1.0 / tl.sqrt(tl.sum(away * away, 1) / W + 1e-6))[:, None]
    shift = tl.load(shift_ptr + (frame * shift_frame)[:, None] + channel[None, :], mask=inside, other=0.0)
    scale = tl.load(scale_ptr + (frame * scale_frame)[:, None] + channel[None, :], mask=inside, other=0.0)
    tl.store(normed_ptr + here, (shift + away * scale).to(normed_ptr.dtype.element_ty), mask=inside)


def fused(
    x: Tensor, gate: Tensor | None, change: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `residual_modulated_norm`; without gate and change the stream stays as it is."""
    batch, frames, tokens, width = x.shape
    if x.dtype != torch.float32 or x.stride()[2:] != (width, 1):
        raise ValueError(f"modulated_norm: x is {x.dtype} with strides {x.stride()}: expected fp32 and whole rows")
    for name, vector in (("gate", gate), ("shift", shift), ("scale", scale)):
        if vector is None:
            continue
        shape, ready = tuple(vector.shape), vector.dtype == torch.float32 and vector.stride(3) == 1
        if shape != (1, frames, 1, width) or not ready:
            raise ValueError(
                f"modulated_norm: {name} is {vector.dtype} {shape}: expected fp32 (1, {frames}, 1, {width}), contiguous"
            )
    if (gate is None) != (change is None):
        raise ValueError("modulated_norm: give gate and change, or neither")
    if change is not None and (change.shape != x.shape or not change.is_contiguous()):
        raise ValueError(f"modulated_norm: change is {tuple(change.shape)}: expected contiguous {tuple(x.shape)}, as x")
    normed = torch.empty(x.shape, dtype=dtype, device=x.device)
    out = x if change is None else torch.empty(x.shape, device=x.device)
    gated = shift if gate is None else gate
    total, padded = batch * frames * tokens, triton.next_power_of_2(width)
    rows = max(1, _ELEMENTS // padded)
    if total:
        _fused_kernel[(triton.cdiv(total, rows),)](
            x, gated, x if change is None else change, shift, scale, out, normed,
            total, frames, tokens, x.stride(0), x.stride(1), gated.stride(1), shift.stride(1), scale.stride(1),
            W=width, W_PAD=padded, ROWS=rows, RESIDUAL=change is not None,
        )  # fmt: skip
    return out, normed
