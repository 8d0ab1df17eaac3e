"""The attention shapes of training the `tiny` model, as index lists: what the benchmark times."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .block_selection import select_blocks

FRAMES, BLOCKS, TOKENS, WINDOW, TOP = 128, 6, 60, 8, 48


class Shape(NamedTuple):
    """One attention call.

    Attributes:
        name: short name.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        key_tokens: tokens of the keys.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
    """

    name: str
    q_block: int
    kv_block: int
    key_tokens: int
    lists: Tensor
    counts: Tensor


def from_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a mask ``[..., NQ, NK]`` into ascending lists and counts."""
    counts = mask.sum(dim=-1, dtype=torch.int32)
    num_keys = mask.shape[-1]
    index = torch.arange(num_keys, device=mask.device, dtype=torch.int32)
    order = torch.where(mask, index, num_keys).sort(dim=-1).values[..., : int(counts.max())]
    return torch.where(order < num_keys, order, 0), counts


def frame_mask(frames: int, window: int | None, device: torch.device) -> Tensor:
    """Which frames of [clean | noisy] attend to which: bool ``[2 frames, 2 frames]``; all the past without a window."""
    query = torch.arange(frames, device=device)[:, None]
    key = torch.arange(frames, device=device)[None]
    past = key < query if window is None else (key < query) & (key >= query - window)
    own = key == query
    none = torch.zeros_like(past)
    return torch.cat([torch.cat([past | own, none], 1), torch.cat([past, own], 1)], 0)


def retrieved(
    batch: int, heads: int, frames: int, related: bool, skip: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Lists of the sparse memory: top blocks of the frames before the last ``skip`` ones.

    Args:
        batch: rows.
        heads: heads.
        frames: frames of each stream.
        related: scores that the blocks of a frame, and a frame in both streams, mostly share (as trained models
            have), instead of uniformly random ones.
        skip: frames just before the query's that are not candidates.
        device: of the result.

    Returns:
        lists and counts of the ``2 * frames * BLOCKS`` query blocks.
    """
    rng = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device)

    dim, blocks = 32, frames * BLOCKS
    shared = 1.0 if related else 0.0
    frame_q, frame_k = normal(batch, heads, 1, frames, 1, dim), normal(batch, heads, frames, 1, dim)
    q = shared * frame_q + (normal(batch, heads, 2, frames, BLOCKS, dim) * (0.5 if related else 1.0))
    k = shared * frame_k + (normal(batch, heads, frames, BLOCKS, dim) * (0.5 if related else 1.0))
    limit = ((torch.arange(blocks, device=device) // BLOCKS - skip).clamp(min=0) * BLOCKS).repeat(2)[None].int()
    return select_blocks(q.flatten(2, 4), k.flatten(2, 3), TOP, limit)


def tiny_shapes(batch: int, heads: int, frames: int, device: torch.device) -> list[Shape]:
    """Shapes of one training step of `tiny`: memory, window, dense and union attention over [clean | noisy] frames.

    Args:
        batch: rows.
        heads: heads.
        frames: frames of each stream.
        device: of the lists.

    Returns:
        The shapes; those with retrieved blocks twice, with random and with related lists.
    """
    shapes = []
    for name, related in (("sgm", False), ("sgm related", True)):
        lists, counts = retrieved(batch, heads, frames, related, 0, device)
        shapes.append(Shape(name, 10, 10, frames * TOKENS, lists, counts))
    for name, window in (("window", WINDOW), ("dense", None)):
        lists, counts = from_mask(frame_mask(frames, window, device)[None, None])
        shapes.append(Shape(name, TOKENS, TOKENS, 2 * frames * TOKENS, lists, counts))
    for name, related in (("union", False), ("union related", True)):
        shapes.append(Shape(name, 10, 10, 2 * frames * TOKENS, *_union(batch, heads, frames, related, device)))
    return shapes


def _union(batch: int, heads: int, frames: int, related: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Retrieved blocks of the frames before the window, and the window's."""
    lists, counts = retrieved(batch, heads, frames, related, WINDOW, device)
    near = frame_mask(frames, WINDOW, device).repeat_interleave(BLOCKS, 0).repeat_interleave(BLOCKS, 1)
    union = torch.zeros(batch, heads, *near.shape, dtype=torch.bool, device=device)
    listed = torch.arange(TOP, device=device) < counts[..., None]
    # Column 0 stands in for missing entries; it is repaired below.
    union.scatter_(-1, torch.where(listed, lists, 0).long(), True)
    union[..., 0] = (listed & (lists == 0)).any(-1)
    union |= near
    return _lists_by_row(union)


def _lists_by_row(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`from_mask`, one batch row at a time to bound memory."""
    parts = [from_mask(row) for row in mask]
    width = max(p[0].shape[-1] for p in parts)
    lists = torch.stack([torch.nn.functional.pad(p[0], (0, width - p[0].shape[-1])) for p in parts])
    return lists, torch.stack([p[1] for p in parts])
