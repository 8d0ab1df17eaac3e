"""The Triton kernels. Arithmetic is fp32; means are of the values before rounding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS = 16  # of a step of the loop over a block


@triton.jit
def _norm_kernel(x_ptr, out_ptr, rows, stride, INNER: tl.constexpr, PAD: tl.constexpr):
    """1 / RMS over all heads of a token's q (program axis 1 = 0) or k (1)."""
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, PAD)
    x = tl.load(x_ptr + row * stride + which * INNER + at, mask=at < INNER, other=0.0).to(tl.float32)
    tl.store(out_ptr + which * rows + row, 1.0 / tl.sqrt(tl.sum(x * x, 0) / INNER + 1e-6))


@triton.jit
def _encode_kernel(
    x_ptr, inverse_ptr, norm_ptr, matrix_ptr, cos_ptr, sin_ptr, slots_ptr, out_ptr, means_ptr,
    stride, heads, tokens, real, pages, angles,
    D: tl.constexpr, CAMERA: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    NORM: tl.constexpr, ROTATE: tl.constexpr, MEANS: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """One block of one head of one frame: norm, camera, rotation; output and mean."""
    blocks = tokens // BLOCK
    frame, part, head = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    c = tl.arange(0, D)
    group, pair = c // 4 * 4, (c - CAMERA) // 2
    is_camera = c < CAMERA
    sign = tl.where(c % 2 == 0, -1.0, 1.0)
    if NORM:
        scale = tl.load(norm_ptr + head * D + c)
        other_scale = tl.load(norm_ptr + head * D + (c ^ 1))
    # The page of the output: of the frame in the memory, or the frame itself.
    if PAGED:
        page = tl.load(slots_ptr + frame).to(tl.int64)
        base = (head.to(tl.int64) * pages + page) * tokens
        mean_base = (head.to(tl.int64) * pages + page) * blocks
    else:
        base = (frame * heads + head) * tokens
        mean_base = (frame * heads + head) * blocks
    total = tl.zeros((D,), tl.float32)
    for start in range(0, BLOCK, TOKENS):
        inside = start + tl.arange(0, TOKENS)
        token = part * BLOCK + inside
        ok = (inside < BLOCK)[:, None] & (c >= 0)[None, :]
        row = (frame * tokens + token)[:, None]
        source = x_ptr + row * stride + head * D
        own = tl.load(source + c[None, :], mask=ok, other=0.0).to(tl.float32)
        if NORM:
            own = own * scale[None, :]
        result = own
        if ROTATE:
            turning = ok & (c >= CAMERA)[None, :]
            other = tl.load(source + (c ^ 1)[None, :], mask=turning, other=0.0).to(tl.float32)
            if NORM:
                other = other * other_scale[None, :]
            cos = tl.load(cos_ptr + row * angles + pair[None, :], mask=turning, other=1.0)
            sin = tl.load(sin_ptr + row * angles + pair[None, :], mask=turning, other=0.0)
            result = own * cos + other * sign[None, :] * sin
        camera = tl.zeros((TOKENS, D), tl.float32)
        for j in tl.static_range(4):
            weight = tl.load(matrix_ptr + frame * 16 + c % 4 * 4 + j)
            if NORM:
                weight = weight * tl.load(norm_ptr + head * D + group + j)
            x = tl.load(source + (group + j)[None, :], mask=ok & is_camera[None, :], other=0.0).to(tl.float32)
            camera += x * weight[None, :]
        result = tl.where(is_camera[None, :], camera, result)
        if NORM:
            result = result * tl.load(inverse_ptr + frame * tokens + token, mask=inside < BLOCK, other=0.0)[:, None]
        tl.store(out_ptr + (base + token)[:, None] * D + c[None, :], result.to(out_ptr.dtype.element_ty), mask=ok)
        if MEANS:
            total += tl.sum(tl.where(ok & (token < real)[:, None], result, 0.0), 0)
    if MEANS:
        count = tl.minimum(BLOCK, real - part * BLOCK)
        tl.store(means_ptr + (mean_base + part) * D + c, total / count)


def encode(
    mixed: Tensor,
    norm: Tensor,
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    pages: tuple[Tensor, Tensor, Tensor],
    slots: Tensor,
    block: int,
    real: int,
) -> tuple[Tensor, Tensor]:
    """See `encode_pages`."""
    frames, tokens, stride = mixed.shape
    keys, values, pooled = pages
    heads, capacity, _, dim = keys.shape
    inner, angles = heads * dim, cos.shape[-1]
    query, key, cos, sin, norm = (x.contiguous() for x in (query, key, cos, sin, norm))
    if not mixed.is_contiguous() or not all(x.is_contiguous() for x in pages):
        raise ValueError("encode_pages: mixed and pages must be contiguous")
    inverse = torch.empty(2, frames * tokens, device=mixed.device)
    q = torch.empty(frames, heads, tokens, dim, dtype=mixed.dtype, device=mixed.device)
    q_means = torch.empty(frames, heads, tokens // block, dim, device=mixed.device)
    _norm_kernel[(frames * tokens, 2)](
        mixed, inverse, frames * tokens, stride, INNER=inner, PAD=triton.next_power_of_2(inner)
    )
    scales = norm.view(2, heads * dim)
    grid = (frames * (tokens // block), heads)
    sizes = (stride, heads, tokens, real, capacity, angles)
    shape = {"D": dim, "CAMERA": dim - 2 * angles, "BLOCK": block, "TOKENS": _TOKENS}
    for i, (matrix, out, means) in enumerate(((query, q, q_means), (key, keys, pooled), (key, values, pooled))):
        _encode_kernel[grid](
            mixed.view(-1)[i * inner :], inverse[min(i, 1)], scales[min(i, 1)], matrix, cos, sin, slots, out, means,
            *sizes, **shape, NORM=i < 2, ROTATE=i < 2, MEANS=i < 2, PAGED=i > 0,
        )  # fmt: skip
    return q, q_means
