"""Decoupled memory attention under teacher forcing: the lists, and the two branches (DecMem section 4).

Every branch is one call of `kernels.block_sparse_attention`; only the lists differ. Sequences are [clean | noisy], T
latent frames each, in chunks that are denoised together. A frame of either half may look at:

- ALM (anchored local memory): the clean frames of the window before its chunk, and its own chunk in its own half.
- SGM (sparse global memory): the top-k blocks, per head and query block, of all clean frames before its chunk.
- `union`: one softmax over the window, its chunk, and the retrieved blocks of the frames before the window.
- `dense`: one softmax over all clean frames before its chunk, and its chunk. There the gate is not used, so that one
  set of weights passes through dense stages first. `window` is the same over the window.

Windows count places in the sequence, never frame indices, which may jump where a sequence is spliced.

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
    """Lists of whole frames, shared by heads and mostly by the batch, with their inverse for the backward pass.

    Attributes:
        lists: int32 [1 or B, 1, Q, L].
        counts: int32 [1 or B, 1, Q].
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
def window_lists(frames: int, window: int, chunk: int, device: torch.device) -> FrameLists:
    """ALM lists of [clean | noisy]: the `window` clean frames before the frame's chunk, and the chunk itself.

    A window of all frames is dense attention.
    """
    clean, noisy = [], []
    for i in range(frames):
        start = i // chunk * chunk
        stop = min(start + chunk, frames)
        past = list(range(max(0, start - window), start))
        clean.append([*past, *range(start, stop)])
        noisy.append([*past, *range(frames + start, frames + stop)])
    return _pack(clean + noisy, 2 * frames, device)


def seen_lists(window: FrameLists, seen: Tensor, counts: Tensor) -> FrameLists:
    """Window lists, but for frames that see chosen frames of their past (`nearest_views`), and themselves.

    Args:
        window: `window_lists` of T frames with chunks of 1.
        seen: int32 [B, T, n], clean frames, n at most the window.
        counts: int32 [B, T], how many of them count; -1 for frames that see their window.

    Returns:
        Lists [B, 1, 2T, L], with a batch of their own.
    """
    frames, length = seen.shape[1], window.lists.shape[-1]
    own = torch.arange(frames, device=seen.device, dtype=torch.int32).expand(seen.shape[:2])
    both = torch.cat([torch.cat([half[..., None], seen], -1) for half in (own, own + frames)], 1)[:, None]
    both = torch.nn.functional.pad(both, (0, length - both.shape[-1]))
    many = counts.repeat(1, 2)[:, None]
    lists = torch.where((many >= 0)[..., None], both, window.lists)
    many = torch.where(many >= 0, many + 1, window.counts)
    inverse = invert_lists(lists, many, 2 * frames)
    return FrameLists(lists, many, inverse.offsets, inverse.entries)


@lru_cache(maxsize=32)
def history_limit(frames: int, blocks: int, skip: int, chunk: int, device: torch.device) -> Tensor:
    """Number of leading clean blocks that each query block may retrieve, int32 [1, 2 * frames * blocks].

    Args:
        frames: T.
        blocks: M.
        skip: Latest frames before the chunk that are left out (the window's, where one softmax already holds them).
        chunk: Frames of a chunk.
        device: Where.
    """
    starts = torch.arange(frames, device=device) // chunk * chunk
    limit = (starts - skip).clamp_min(0) * blocks
    return limit.repeat(2).repeat_interleave(blocks).to(torch.int32)[None]


@lru_cache(maxsize=32)
def key_sizes(config: ModelConfig, frames: int, tile: int, device: torch.device) -> Tensor | None:
    """Real keys of each run of `tile` places in a sequence of whole frames, int32 [frames * N / tile].

    None where frames are not padded. The padding must be less than a tile.
    """
    if not config.padding:
        return None
    sizes = torch.full((frames, config.tokens // tile), tile, dtype=torch.int32)
    sizes[:, -1] -= config.padding
    return sizes.flatten().to(device)


def frame_attention(
    q: Tensor, k: Tensor, v: Tensor, lists: FrameLists, tokens: int, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention over listed frames: q [B, H, Q * N, D], k and v [B, H, K * N, D]; `sizes` from `key_sizes`.

    Returns:
        (output like q, log-sum-exp fp32 [B, H, Q * N]).
    """
    return block_sparse_attention(
        q,
        k,
        v,
        lists.lists,
        lists.counts,
        q_block=tokens,
        kv_block=tokens,
        kv_sizes=sizes,
        inverse=InverseLists(lists.offsets, lists.entries),
        return_lse=True,
    )


def block_means(x: Tensor, config: ModelConfig) -> Tensor:
    """Mean query or key of every block over its real tokens: [B, H, T * N, D] to fp32 [B, H, T * M, D]."""
    means = pool_blocks(x, config.block_tokens)
    if not config.padding:
        return means
    size, spare = config.block_tokens, config.padding
    last = x.detach().unflatten(2, (-1, config.tokens))[:, :, :, -size:-spare].mean(3, dtype=torch.float32)
    means = means.unflatten(2, (-1, config.blocks_per_frame))
    return torch.cat([means[:, :, :, :-1], last[:, :, :, None]], 3).flatten(2, 3)


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
    with torch.no_grad():
        lists, counts = select_blocks(block_means(q, config), block_means(k, config), config.top_k, limit)
    return BlockLists(lists, counts)


def block_table(lists: Tensor, counts: Tensor, queries: int, keys: int) -> BlockLists:
    """Lists of frames [B, 1, Q, L] as lists of their parts, for each part of a query frame.

    Args:
        lists: Of frames.
        counts: [B, 1, Q].
        queries: Parts of a query frame.
        keys: Parts of a key frame.

    Returns:
        Lists [B, 1, Q * queries, L * keys].
    """
    inside = torch.arange(keys, device=lists.device, dtype=torch.int32)
    flat = (lists[..., None] * keys + inside).flatten(3)
    return BlockLists(flat.repeat_interleave(queries, 2), (counts * keys).repeat_interleave(queries, 2))


def union_lists(retrieved: BlockLists, local: BlockLists) -> BlockLists:
    """Append the window's blocks to the retrieved ones, packed (the retrieved ones all lie before the window).

    Args:
        retrieved: Lists of k entries, from `retrieve` with the window skipped.
        local: Lists of L entries, from `block_table`.

    Returns:
        Lists of k + L entries.
    """
    batch, heads, _, k = retrieved.lists.shape
    both = torch.cat([retrieved.lists, local.lists.expand(batch, heads, -1, -1)], -1)
    place = torch.arange(both.shape[-1], device=both.device)
    start = retrieved.counts[..., None]
    index = torch.where(place < start, place, (place - start + k).clamp_max(both.shape[-1] - 1))
    return BlockLists(both.gather(-1, index), retrieved.counts + local.counts)
