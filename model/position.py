"""Multimodal position embedding (DecMem section 3.5, eq. 4-13): camera, patch grid and time, each in its own channels.

| tensor | camera      | spatial | temporal |
|--------|-------------|---------|----------|
| q      | P~^T        | R       | R        |
| k      | P~^-1       | R       | R        |
| v      | P~^-1       | R       | identity |
| output | P~          | R^-1    | identity |

P~ is the lifted projection of the frame's camera (PRoPE); R rotates forward, so that a query at i sees a key at j
through R(j - i). Only relative quantities enter. The maths runs in fp32: P~ is not orthogonal, and products in 16 bit
lose the difference of two large translations.

Two layouts split a head's channels. `split` holds camera, x, y and time one after the other, each with a full range of
frequencies. `wan` keeps the pretrained backbone: time, rows and columns lie as Wan has them, at its frequencies; the
camera takes the slowest pairs of each axis, which hardly turn within a clip; values know no patch position there, as in
Wan (its weights were trained so), only the camera.

| `wan`, 128 channels | kept rotary channels | given to the camera |
|---------------------|----------------------|---------------------|
| time, 44            | 0-27                 | 28-43               |
| rows, 42            | 44-77                | 78-85               |
| columns, 42         | 86-119               | 120-127             |

Shapes: B batch, F frames, N tokens of a frame, H heads, D head channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .config import ModelConfig


class Positions(NamedTuple):
    """Everything the transforms need for F frames.

    Attributes:
        query: fp32 [B, F, 4, 4] = P~^T.
        key: fp32 [B, F, 4, 4] = P~^-1.
        output: fp32 [B, F, 4, 4] = P~.
        cos: fp32 [B, F, N, pairs] of spatial then temporal rotary angles.
        sin: like cos.
    """

    query: Tensor
    key: Tensor
    output: Tensor
    cos: Tensor
    sin: Tensor


def token_order(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Raster index of each place in storage order, int64 [N]: block after block, so that a block is contiguous."""
    height, width = config.grid
    raster = torch.arange(height * width, device=device)
    if config.block_tile is None:
        return torch.cat([raster, raster[-1:].expand(config.padding)])
    rows, columns = config.block_tile
    tiles = raster.view(height // rows, rows, width // columns, columns)
    return tiles.permute(0, 2, 1, 3).reshape(-1)


def channel_order(config: ModelConfig) -> Tensor | None:
    """The stored head channel of each channel of camera, x, y and time, int64 [D]; None where they are stored so."""
    if config.layout == "split":
        return None
    quarter, axis = config.camera_channels // 4, config.head_dim // 6 * 2
    start = config.head_dim - 2 * axis
    # On the CPU whatever the default: modules are also built on the meta device, to be filled.
    time, rows, columns = torch.arange(config.head_dim, device="cpu").split([start, axis, axis])
    kept, slow = config.temporal_channels, axis - quarter
    return torch.cat([time[kept:], rows[slow:], columns[slow:], columns[:slow], rows[:slow], time[:kept]])


def _frequencies(base: float, kept: int, of: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The fastest `kept` of `of` rotary frequencies."""
    return base ** (-torch.arange(kept, device=device, dtype=dtype) / of)


def spatial_angles(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Rotary angles of the patch grid in storage order, fp32 [N, spatial_channels / 2], x half then y half (eq. 10)."""
    pairs = config.spatial_channels // 4
    whole, dtype = (pairs, torch.float32) if config.layout == "split" else (config.head_dim // 6, torch.float64)
    frequency = _frequencies(config.spatial_base, pairs, whole, dtype, device)
    order = token_order(config, device)
    x, y = order % config.grid[1], order // config.grid[1]
    return torch.cat([x[:, None] * frequency, y[:, None] * frequency], -1).float()


def temporal_angles(config: ModelConfig, frame_index: Tensor) -> Tensor:
    """Rotary angles of time, fp32 [..., temporal_channels / 2]; computed in fp64, so that hours stay exact (eq. 11)."""
    pairs = config.temporal_channels // 2
    whole = pairs if config.layout == "split" else config.head_dim // 2 - config.head_dim // 6 * 2
    frequency = _frequencies(config.temporal_base, pairs, whole, torch.float64, frame_index.device)
    angle = frame_index[..., None].double() * frequency
    return (angle % (2 * torch.pi)).float()


def positions(
    config: ModelConfig, spatial: Tensor, projective: Tensor, projective_inverse: Tensor, frame_index: Tensor
) -> Positions:
    """Prepare the transforms of F frames.

    Args:
        config: Sizes.
        spatial: `spatial_angles`, fp32 [N, spatial_channels / 2].
        projective: P~, fp32 [B, F, 4, 4].
        projective_inverse: fp32 [B, F, 4, 4].
        frame_index: int64 [B, F].

    Returns:
        The transforms.
    """
    batch, frames = frame_index.shape
    time = temporal_angles(config, frame_index)
    angle = torch.cat(
        [
            spatial[None, None].expand(batch, frames, -1, -1),
            time[:, :, None].expand(-1, -1, spatial.shape[0], -1),
        ],
        -1,
    )
    return Positions(projective.mT, projective_inverse, projective, angle.cos(), angle.sin())


def _project(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply [B, F, 4, 4] to groups of four channels of [B, F, N, H, G, 4]; a sum of products, which compilers fuse."""
    rows = matrix[:, :, None, None, None]
    return (rows * x[..., None, :]).sum(-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """Rotate interleaved pairs of [..., H, 2 * pairs] by sign * angle [..., pairs]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., None, :], sign * sin[..., None, :]
    return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)


def transform(x: Tensor, kind: str, where: Positions, config: ModelConfig) -> Tensor:
    """Position-encode one tensor.

    Args:
        x: [B, F, N, H, D], channels in the order of `channel_order`.
        kind: `query`, `key`, `value` or `output`.
        where: Of the F frames.
        config: Split of the head channels.

    Returns:
        The same shape and dtype.
    """
    camera, spatial = config.camera_channels, config.spatial_channels
    full = x.float()
    matrix = {"query": where.query, "key": where.key, "value": where.key, "output": where.output}[kind]
    if kind in ("query", "key"):
        end = full.shape[-1]
    else:
        end = camera + (spatial if config.layout == "split" else 0)
    parts = []
    if camera:
        parts.append(_project(full[..., :camera].unflatten(-1, (-1, 4)), matrix).flatten(-2))
    if end > camera:
        pairs, sign = (end - camera) // 2, -1.0 if kind == "output" else 1.0
        parts.append(_rotate(full[..., camera:end], where.cos[..., :pairs], where.sin[..., :pairs], sign))
    parts.append(full[..., end:])
    return torch.cat(parts, -1).to(x.dtype)


class FrameMatrices(NamedTuple):
    """The same transforms as matrices, for inference with `split`: few, large operations, not many small ones.

    A row x of D channels becomes `(x @ m)[:D] * cos + (x @ m)[D:] * sin`: `m` is the camera and time part beside the
    quarter turn of the patch rotary, whose angles differ from token to token.

    Attributes:
        encode: fp32 [F, 3, D, 2D] for q, k and v.
        decode: fp32 [F, D, 2D] for outputs; use `-sin`.
        cos: fp32 [N, 1, D], 1 outside of the patch channels.
        sin: fp32 [N, 1, D], 0 outside of them.
    """

    encode: Tensor
    decode: Tensor
    cos: Tensor
    sin: Tensor


def patch_tables(config: ModelConfig, spatial: Tensor) -> tuple[Tensor, Tensor]:
    """`cos` and `sin` of `FrameMatrices` from `spatial_angles`."""
    angle = spatial.repeat_interleave(2, -1)[:, None]
    cos = spatial.new_ones(config.tokens, 1, config.head_dim)
    sin = spatial.new_zeros(config.tokens, 1, config.head_dim)
    patch = slice(config.camera_channels, config.camera_channels + config.spatial_channels)
    cos[..., patch], sin[..., patch] = angle.cos(), angle.sin()
    return cos, sin


def frame_matrices(
    config: ModelConfig, tables: tuple[Tensor, Tensor], projective: Tensor, inverse: Tensor, frame_index: Tensor
) -> FrameMatrices:
    """Build the matrices of F frames.

    Args:
        config: Sizes.
        tables: From `patch_tables`; the result goes to their device.
        projective: P~, fp32 [F, 4, 4].
        inverse: fp32 [F, 4, 4].
        frame_index: int64 [F].
    """
    camera, device = config.camera_channels, projective.device
    # Of q, k, v and output. Rows are multiplied from the left, so each 4x4 matrix appears transposed: (P~^T)^T,
    # (P~^-1)^T, P~^T.
    small = torch.stack([projective, inverse.mT, inverse.mT, projective.mT], 1)
    both = _constant_part(config, device).repeat(len(frame_index), 1, 1, 1)
    for start in range(0, camera, 4):
        both[:, :, start : start + 4, start : start + 4] = small
    start, stop = camera + config.spatial_channels, config.head_dim
    angle = temporal_angles(config, frame_index)[:, None]
    cos, sin = angle.cos(), angle.sin()
    turned = both[:, :2, start:stop, start:stop]
    for row, column, value in ((0, 0, cos), (1, 1, cos), (1, 0, -sin), (0, 1, sin)):
        turned[:, :, row::2, column::2].diagonal(dim1=2, dim2=3).copy_(value)
    both = both.to(tables[0].device)
    return FrameMatrices(both[:, :3].contiguous(), both[:, 3].contiguous(), *tables)


@lru_cache(maxsize=8)
def _constant_part(config: ModelConfig, device: torch.device) -> Tensor:
    """What `frame_matrices` have in common, fp32 [4, D, 2D]: patch rotations, and time's where there is none."""
    dim, first, last = config.head_dim, config.camera_channels, config.camera_channels + config.spatial_channels
    both = torch.zeros(4, dim, 2 * dim)
    even = torch.arange(first, last, 2)
    both[:, even, even] = 1.0
    both[:, even + 1, even + 1] = 1.0
    both[:, even + 1, dim + even] = -1.0
    both[:, even, dim + even + 1] = 1.0
    time = torch.arange(last, dim)
    both[2:, time, time] = 1.0
    return both.to(device)
