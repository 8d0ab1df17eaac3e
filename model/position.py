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

Shapes: B batch, F frames, N tokens of a frame, H heads, D head channels.
"""

from __future__ import annotations

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
    """Raster index of each token in storage order, int64 [N]: block after block, so that a block is contiguous."""
    rows, columns = config.block_tile
    raster = torch.arange(config.tokens, device=device).view(config.latent_height, config.latent_width)
    tiles = raster.view(config.latent_height // rows, rows, config.latent_width // columns, columns)
    return tiles.permute(0, 2, 1, 3).reshape(-1)


def spatial_angles(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Rotary angles of the patch grid in storage order, fp32 [N, spatial_channels / 2], x half then y half (eq. 10)."""
    pairs = config.spatial_channels // 4
    frequency = config.spatial_base ** (-torch.arange(pairs, device=device, dtype=torch.float32) / pairs)
    order = token_order(config, device)
    x, y = order % config.latent_width, order // config.latent_width
    return torch.cat([x[:, None] * frequency, y[:, None] * frequency], -1)


def temporal_angles(config: ModelConfig, frame_index: Tensor) -> Tensor:
    """Rotary angles of time, fp32 [..., temporal_channels / 2]; computed in fp64, so that hours stay exact (eq. 11)."""
    pairs = config.temporal_channels // 2
    frequency = config.temporal_base ** (-torch.arange(pairs, device=frame_index.device, dtype=torch.float64) / pairs)
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
        x: [B, F, N, H, D].
        kind: `query`, `key`, `value` or `output`.
        where: Of the F frames.
        config: Split of the head channels.

    Returns:
        The same shape and dtype.
    """
    camera, spatial = config.camera_channels, config.spatial_channels
    full = x.float()
    matrix = {"query": where.query, "key": where.key, "value": where.key, "output": where.output}[kind]
    projected = _project(full[..., :camera].unflatten(-1, (-1, 4)), matrix).flatten(-2)
    timed = kind in ("query", "key")
    rotary = full[..., camera:] if timed else full[..., camera : camera + spatial]
    pairs = rotary.shape[-1] // 2
    rotated = _rotate(rotary, where.cos[..., :pairs], where.sin[..., :pairs], -1.0 if kind == "output" else 1.0)
    parts = [projected, rotated] if timed else [projected, rotated, full[..., camera + spatial :]]
    return torch.cat(parts, -1).to(x.dtype)


class FrameMatrices(NamedTuple):
    """The same transforms as matrices, for inference: few, large operations instead of many small ones.

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
    frames, dim, camera, device = len(frame_index), config.head_dim, config.camera_channels, projective.device
    both = torch.zeros(frames, 4, dim, 2 * dim, device=device)  # q, k, v, output
    # Rows are multiplied from the left, so each 4x4 matrix appears transposed: (P~^T)^T, (P~^-1)^T, P~^T.
    small = torch.stack([projective, inverse.mT, inverse.mT, projective.mT], 1)
    copies = torch.eye(camera // 4, device=device)
    both[:, :, :camera, :camera] = torch.einsum("gh,fkij->fkgihj", copies, small).reshape(frames, 4, camera, camera)
    even = torch.arange(camera, camera + config.spatial_channels, 2, device=device)
    both[:, :, even, even] = 1.0
    both[:, :, even + 1, even + 1] = 1.0
    both[:, :, even + 1, dim + even] = -1.0
    both[:, :, even, dim + even + 1] = 1.0
    even = torch.arange(camera + config.spatial_channels, dim, 2, device=device)
    angle = temporal_angles(config, frame_index)[:, None]
    cos, sin = angle.cos(), angle.sin()
    both[:, :2, even, even] = cos
    both[:, :2, even + 1, even + 1] = cos
    both[:, :2, even + 1, even] = -sin
    both[:, :2, even, even + 1] = sin
    both[:, 2:, even, even] = 1.0
    both[:, 2:, even + 1, even + 1] = 1.0
    both = both.to(tables[0].device)
    return FrameMatrices(both[:, :3].contiguous(), both[:, 3].contiguous(), *tables)
