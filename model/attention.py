"""Decoupled memory attention under teacher forcing: the lists, and the two branches (DecMem section 4).

Every branch is one call of `kernels.block_sparse_attention`; only the lists differ. Sequences are [clean | noisy], T latent
frames each, one frame a chunk. Frame i of either half may look at:

- ALM (anchored local memory): the clean frames of its window, and itself.
- SGM (sparse global memory): the top-k blocks, per head and query block, of all clean frames before i.
- `union`: one softmax over the window and the retrieved blocks of the frames before it.
- `dense`: one softmax over all clean frames before i, and itself.

Shapes: B batch, T latent frames, N tokens of a frame, M blocks of a frame, H heads, D head channels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.block_selection import pool_blocks, select_blocks
from ..kernels.block_sparse_attention import InverseLists, block_sparse_attention, invert_lists
from .config import ModelConfig


class FrameLists(NamedTuple):
    """Lists of whole frames, shared by batch and heads, with their inverse for the backward pass.

    Attributes:
        lists: int32 [1, 1, Q, L].
        counts: int32 [1, 1, Q].
        offsets: Inverse lists.
        entries: Inverse lists.
    """

    lists: Tensor
    counts: Tensor
    offsets: Tensor
    entries: Tensor


class BlockLists(NamedTuple):
    """Retrieved blocks: int32 [B, H, Q * M, k] and how many of them count, int32 [B, H, Q * M]."""

    lists: Tensor
    counts: Tensor


def _pack(rows: list[list[int]], key_frames: int, device: torch.device) -> FrameLists:
    length = max(len(row) for row in rows)
    lists = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int32, device=device)[
        None, None
    ]
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32, device=device)[None, None]
    inverse = invert_lists(lists, counts, key_frames)
    return FrameLists(lists, counts, inverse.offsets, inverse.entries)


@lru_cache(maxsize=32)
def window_lists(frames: int, window: int, device: torch.device) -> FrameLists:
    """ALM lists of [clean | noisy]: the `window` clean frames before, and the frame itself."""
    clean = [list(range(max(0, i - window), i + 1)) for i in range(frames)]
    noisy = [[*range(max(0, i - window), i), frames + i] for i in range(frames)]
    return _pack(clean + noisy, 2 * frames, device)


@lru_cache(maxsize=32)
def dense_lists(frames: int, device: torch.device) -> FrameLists:
    """Dense lists of [clean | noisy]: every clean frame before, and the frame itself."""
    return window_lists(frames, frames, device)


@lru_cache(maxsize=32)
def history_limit(frames: int, blocks: int, skip: int, device: torch.device) -> Tensor:
    """Number of leading clean blocks that each query block may retrieve, int32 [1, 2 * frames * blocks].

    Args:
        frames: T.
        blocks: M.
        skip: Latest frames that are left out (the window's, where one softmax already holds them).
        device: Where.
    """
    limit = (torch.arange(frames, device=device) - skip).clamp_min(0) * blocks
    return limit.repeat(2).repeat_interleave(blocks).to(torch.int32)[None]


def frame_attention(q: Tensor, k: Tensor, v: Tensor, lists: FrameLists, tokens: int) -> Tensor:
    """Attention over listed frames: q [B, H, Q * N, D], k and v [B, H, K * N, D], output like q."""
    return block_sparse_attention(
        q, k, v, lists.lists, lists.counts, q_block=tokens, kv_block=tokens, inverse=InverseLists(lists.offsets, lists.entries)
    )


def retrieve(q: Tensor, k: Tensor, limit: Tensor, config: ModelConfig) -> BlockLists:
    """Top-k history blocks per head and query block, by the product of mean queries and mean keys (DecMem 4.1).

    Args:
        q: Position-encoded queries [B, H, Q * N, D].
        k: Position-encoded clean keys [B, H, T * N, D].
        limit: int32 [1, Q * M].
        config: Sizes.

    Returns:
        The lists, ascending.
    """
    size = config.block_tokens
    with torch.no_grad():
        lists, counts = select_blocks(pool_blocks(q, size), pool_blocks(k, size), config.top_k, limit)
    return BlockLists(lists, counts)


def union_lists(retrieved: BlockLists, window: FrameLists, blocks: int) -> BlockLists:
    """Append the window's blocks to the retrieved ones (which all lie before them), packed.

    Args:
        retrieved: From `retrieve` with the window skipped.
        window: `window_lists`.
        blocks: M.

    Returns:
        Lists of k + (window + 1) * M entries.
    """
    inside = torch.arange(blocks, device=window.lists.device, dtype=torch.int32)
    local = (window.lists[0, 0, :, :, None] * blocks + inside).flatten(1).repeat_interleave(blocks, 0)  # [Q * M, L * M]
    local_counts = (window.counts[0, 0] * blocks).repeat_interleave(blocks, 0)  # [Q * M]
    batch, heads, queries, k = retrieved.lists.shape
    both = torch.cat([retrieved.lists, local.expand(batch, heads, -1, -1)], -1)
    place = torch.arange(both.shape[-1], device=both.device)
    start = retrieved.counts[..., None]
    index = torch.where(place < start, place, (place - start + k).clamp_max(both.shape[-1] - 1))
    return BlockLists(both.gather(-1, index), retrieved.counts + local_counts)
