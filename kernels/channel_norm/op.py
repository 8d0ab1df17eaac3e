"""The Triton kernels, on rows of channels. Sums run in fp32."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 4096  # of a program: 42 rows of 96 channels, 10 of 384


@triton.jit
def _norm_kernel(
    x_ptr, gamma_ptr, bias_ptr, out_ptr, total, per_video, before, scale,
    C: tl.constexpr, C_PAD: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, C_PAD)
    inside = dims < C
    mask = (rows < total)[:, None] & inside[None, :]
    x = tl.load(x_ptr + rows[:, None] * C + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + dims, mask=inside, other=0.0).to(tl.float32)[None, :]
    norm = tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)
    gamma = tl.load(gamma_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    y = x * (scale / norm)[:, None] * gamma[None, :]
    y = y / (1.0 + tl.exp(-y))
    # Every video of the batch has `before` rows in front of its new ones.
    at = rows + (rows // per_video + 1) * before
    tl.store(out_ptr + at[:, None] * C + dims[None, :], y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_kernel(x_ptr, bias_ptr, other_ptr, total, C: tl.constexpr, C_PAD: tl.constexpr, ROWS: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, C_PAD)
    mask = (rows < total)[:, None] & (dims < C)[None, :]
    at = rows[:, None] * C + dims[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + dims, mask=dims < C, other=0.0).to(tl.float32)
    other = tl.load(other_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, (x + bias[None, :] + other).to(x_ptr.dtype.element_ty), mask=mask)


def _sizes(x: Tensor) -> tuple[int, dict[str, int], tuple[int]]:
    channels = x.shape[-1]
    padded = triton.next_power_of_2(channels)
    total, rows = x.numel() // channels, max(1, _ELEMENTS // padded)
    return total, {"C": channels, "C_PAD": padded, "ROWS": rows}, (triton.cdiv(total, rows),)


def norm_silu_join_rows(x: Tensor, gamma: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill ``out[:, 2:]``.

    Args:
        x: contiguous ``[B, T, H, W, C]``.
        gamma: C elements.
        bias: ``[C]`` or None.
        out: contiguous ``[B, T + 2, H, W, C]``.
    """
    total, sizes, grid = _sizes(x)
    pixels = x.shape[2] * x.shape[3]
    if total:
        _norm_kernel[grid](
            x, gamma, gamma if bias is None else bias, out, total, x.shape[1] * pixels, 2 * pixels,
            x.shape[-1] ** 0.5,
            HAS_BIAS=bias is not None, **sizes,
        )  # fmt: skip


def add_bias_rows(x: Tensor, bias: Tensor, other: Tensor) -> None:
    """Add ``bias`` and ``other`` to ``x`` in place; contiguous ``[B, T, H, W, C]``."""
    total, sizes, grid = _sizes(x)
    if total:
        _add_kernel[grid](x, bias, other, total, **sizes)
