"""FlexAttention at the shapes of :mod:`.benchmark_shapes`: the peer that the benchmark times beside our kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .benchmark_shapes import Shape
from .block_sparse_attention.naive import allowed_blocks

TILE = 128  # tokens of a side of FlexAttention's own blocks


def _touched(x: Tensor, size: int) -> Tensor:
    """Which tiles of ``TILE`` tokens hold a token of a marked block of ``size`` tokens: bool, along the last axis."""
    tokens = x.shape[-1] * size
    first = torch.arange(0, tokens, TILE, device=x.device)
    last = (first + TILE - 1).clamp(max=tokens - 1)
    before = torch.nn.functional.pad(x.to(torch.int32).cumsum(-1, dtype=torch.int32), (1, 0))
    return before[..., last // size + 1] > before[..., first // size]


def block_mask(shape: Shape, batch: int, heads: int) -> BlockMask:
    """The lists of a shape as FlexAttention takes them, without a matrix of all pairs of tokens.

    Args:
        shape: lists of blocks.
        batch: rows of the queries.
        heads: of the queries.

    Returns:
        A mask of the tiles that hold a listed pair of blocks, which looks up each pair of tokens.
    """
    listed = allowed_blocks(shape.lists, shape.counts, shape.key_tokens // shape.kv_block)
    listed = listed.expand(batch, heads, -1, -1).contiguous()
    q_block, kv_block = shape.q_block, shape.kv_block

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return listed[b, h, i // q_block, j // kv_block]

    tiles = _touched(_touched(listed, kv_block).transpose(-1, -2), q_block).transpose(-1, -2)
    # The kernels of FlexAttention take the last axis of both tensors to be contiguous and do not check it.
    counts = tiles.sum(-1, dtype=torch.int32).contiguous()
    order = (~tiles).to(torch.int8).contiguous().sort(dim=-1, stable=True).indices.int().contiguous()
    lengths = (listed.shape[2] * q_block, shape.key_tokens)
    return BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=TILE, mask_mod=allowed, seq_lengths=lengths)


def flex(shape: Shape, batch: int, heads: int) -> Callable[..., Tensor]:
    """Compiled attention of q, k and v with the lists of a shape; rows without keys hold anything."""
    mask = block_mask(shape, batch, heads)
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=mask)  # type: ignore[no-any-return]

    return run
