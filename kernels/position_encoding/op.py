"""The Triton kernels. Arithmetic is fp32; means are of the values before rounding.

A head's channels are taken apart into the four of each group, so that loads and stores stay whole rows while the
camera's matrix and the rotation are plain arithmetic on registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS = 32  # of a tile


@triton.jit
def _apart(x, TOKENS: tl.constexpr, D: tl.constexpr):
    """[TOKENS, D] as the four channels of each group, [TOKENS, D / 4] each."""
    even, odd = tl.split(x.reshape(TOKENS, D // 4, 2, 2))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _together(x0, x1, x2, x3, TOKENS: tl.constexpr, D: tl.constexpr):
    """The inverse of `_apart`."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(TOKENS, D)


@triton.jit
def _camera(matrix_ptr, row: tl.constexpr, x0, x1, x2, x3):
    """One row of a 4 x 4 matrix times the groups."""
    m = matrix_ptr + 4 * row
    return tl.load(m) * x0 + tl.load(m + 1) * x1 + tl.load(m + 2) * x2 + tl.load(m + 3) * x3


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
    stride, heads, frames, tokens, real, pages, mean_pages,
    D: tl.constexpr, CAMERA: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
    ROTATE: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """One block of one head of one frame: norm, camera, rotation; output and mean. Values are only turned."""
    blocks = tokens // BLOCK
    frame, part, head = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    c, groups = tl.arange(0, D), tl.arange(0, D // 4)
    pair = tl.arange(0, D // 2)
    is_camera = (groups < CAMERA // 4)[None, :]
    if PAGED:  # the frame's page in the memory
        page = tl.load(slots_ptr + frame).to(tl.int64)
        place, mean_place = head.to(tl.int64) * pages + page, head.to(tl.int64) * mean_pages + page
    else:  # frame after frame of the head of the row
        place = (frame // frames * heads + head) * frames + frame % frames
        mean_place = place
    matrix = matrix_ptr + frame * 16
    angles: tl.constexpr = (D - CAMERA) // 2
    total = tl.zeros((D,), tl.float32)
    for start in range(0, BLOCK, TOKENS):
        inside = start + tl.arange(0, TOKENS)
        token = part * BLOCK + inside
        row = frame * tokens + token
        live = (inside < BLOCK)[:, None]
        x = tl.load(x_ptr + (row * stride)[:, None] + head * D + c[None, :], mask=live, other=0.0).to(tl.float32)
        if ROTATE:
            inverse = tl.load(inverse_ptr + row, mask=inside < BLOCK, other=0.0)
            x = x * inverse[:, None] * tl.load(norm_ptr + head * D + c)[None, :]
        x0, x1, x2, x3 = _apart(x, TOKENS, D)
        y0, y1, y2, y3 = x0, x1, x2, x3
        if ROTATE:
            at = (row * angles)[:, None] + (pair - CAMERA // 2)[None, :]
            turning = live & (pair >= CAMERA // 2)[None, :]
            cos0, cos1 = tl.split(tl.load(cos_ptr + at, mask=turning, other=1.0).reshape(TOKENS, D // 4, 2))
            sin0, sin1 = tl.split(tl.load(sin_ptr + at, mask=turning, other=0.0).reshape(TOKENS, D // 4, 2))
            y0, y1 = x0 * cos0 - x1 * sin0, x0 * sin0 + x1 * cos0
            y2, y3 = x2 * cos1 - x3 * sin1, x2 * sin1 + x3 * cos1
        y0 = tl.where(is_camera, _camera(matrix, 0, x0, x1, x2, x3), y0)
        y1 = tl.where(is_camera, _camera(matrix, 1, x0, x1, x2, x3), y1)
        y2 = tl.where(is_camera, _camera(matrix, 2, x0, x1, x2, x3), y2)
        y3 = tl.where(is_camera, _camera(matrix, 3, x0, x1, x2, x3), y3)
        result = _together(y0, y1, y2, y3, TOKENS, D)
        out = out_ptr + (place * tokens + token)[:, None] * D + c[None, :]
        tl.store(out, result.to(out_ptr.dtype.element_ty), mask=live)
        if ROTATE:
            total += tl.sum(tl.where(live & (token < real)[:, None], result, 0.0), 0)
    if ROTATE:
        count = tl.minimum(BLOCK, real - part * BLOCK)
        tl.store(means_ptr + (mean_place * blocks + part) * D + c, total / count)


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
    batch, frames, tokens, stride = mixed.shape
    keys, values, pooled = pages
    heads, capacity, _, dim = keys.shape
    inner, rows = heads * dim, batch * frames * tokens
    query, key, cos, sin, norm = (x.contiguous() for x in (query, key, cos, sin, norm))
    if not mixed.is_contiguous() or not all(x.is_contiguous() for x in pages):
        raise ValueError("encode_pages: mixed and pages must be contiguous")
    inverse = torch.empty(2, rows, device=mixed.device)
    q = torch.empty(batch, heads, frames, tokens, dim, dtype=mixed.dtype, device=mixed.device)
    q_means = torch.empty(batch, heads, frames, tokens // block, dim, device=mixed.device)
    _norm_kernel[(rows, 2)](mixed, inverse, rows, stride, INNER=inner, PAD=triton.next_power_of_2(inner))
    scales = norm.view(2, inner)
    grid = (batch * frames * (tokens // block), heads)
    sizes = (stride, heads, frames, tokens, real, capacity, pooled.shape[1])
    shape = {"D": dim, "CAMERA": dim - 2 * cos.shape[-1], "BLOCK": block, "TOKENS": _TOKENS}
    for i, (matrix, out, means) in enumerate(((query, q, q_means), (key, keys, pooled), (key, values, pooled))):
        _encode_kernel[grid](
            mixed.view(-1)[i * inner :], inverse[min(i, 1)], scales[min(i, 1)], matrix, cos, sin, slots, out, means,
            *sizes, **shape, ROTATE=i < 2, PAGED=i > 0,
        )  # fmt: skip
    return q, q_means


@triton.jit
def _merge_kernel(
    local_ptr, retrieved_ptr, gate_ptr, matrix_ptr, out_ptr, heads, kept, first, frames, tokens, stride, tiles,
    D: tl.constexpr, CAMERA: tl.constexpr, TOKENS: tl.constexpr, GATED: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """A tile of tokens of one head of one frame."""
    program, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tile, frame, batch = program % tiles, program // tiles % kept, program // tiles // kept
    c, groups = tl.arange(0, D), tl.arange(0, D // 4)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    live = (token < tokens)[:, None]
    is_camera = (groups < CAMERA // 4)[None, :]
    at = (((batch * heads + head) * kept + frame) * tokens + token)[:, None] * D + c[None, :]
    matrix = matrix_ptr + (batch * frames + first + frame) * 16
    x = tl.load(local_ptr + at, mask=live, other=0.0).to(tl.float32)
    x0, x1, x2, x3 = _apart(x, TOKENS, D)
    y0 = tl.where(is_camera, _camera(matrix, 0, x0, x1, x2, x3), x0)
    y1 = tl.where(is_camera, _camera(matrix, 1, x0, x1, x2, x3), x1)
    y2 = tl.where(is_camera, _camera(matrix, 2, x0, x1, x2, x3), x2)
    y3 = tl.where(is_camera, _camera(matrix, 3, x0, x1, x2, x3), x3)
    result = _together(y0, y1, y2, y3, TOKENS, D)
    if GATED:
        x = tl.load(retrieved_ptr + at, mask=live, other=0.0).to(tl.float32)
        x0, x1, x2, x3 = _apart(x, TOKENS, D)
        y0 = tl.where(is_camera, _camera(matrix, 0, x0, x1, x2, x3), x0)
        y1 = tl.where(is_camera, _camera(matrix, 1, x0, x1, x2, x3), x1)
        y2 = tl.where(is_camera, _camera(matrix, 2, x0, x1, x2, x3), x2)
        y3 = tl.where(is_camera, _camera(matrix, 3, x0, x1, x2, x3), x3)
        source = ((batch * frames + first + frame) * tokens + token)[:, None] * stride + head * D + c[None, :]
        gate = tl.load(gate_ptr + source, mask=live, other=0.0).to(tl.float32)
        if SIGMOID:
            gate = 1.0 / (1.0 + tl.exp(-gate))
        result += gate * _together(y0, y1, y2, y3, TOKENS, D)
    out = ((batch * kept + frame) * tokens + token)[:, None] * (heads * D) + head * D + c[None, :]
    tl.store(out_ptr + out, result.to(out_ptr.dtype.element_ty), mask=live)


def merge(local: Tensor, retrieved: Tensor | None, mixed: Tensor, output: Tensor, camera: int, sigmoid: bool) -> Tensor:
    """See `merge_branches`."""
    batch, heads, _, dim = local.shape
    frames, tokens, stride = mixed.shape[1:]
    kept = local.shape[2] // tokens
    local, output = local.contiguous(), output.contiguous()
    other = local if retrieved is None else retrieved.contiguous()
    out = torch.empty(batch, kept, tokens, heads * dim, dtype=local.dtype, device=local.device)
    tiles = triton.cdiv(tokens, _TOKENS)
    gate = mixed.view(-1)[3 * heads * dim :] if retrieved is not None else mixed
    _merge_kernel[(batch * kept * tiles, heads)](
        local, other, gate, output, out, heads, kept, frames - kept, frames, tokens, stride, tiles,
        D=dim, CAMERA=camera, TOKENS=_TOKENS, GATED=retrieved is not None, SIGMOID=sigmoid,
    )  # fmt: skip
    return out
