"""Attention to retrieved blocks by way of their copies (`staging`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.block_sparse_attention import block_sparse_attention
from .attention import BlockLists, union_lists
from .staging import Staging


class Window(NamedTuple):
    """What shares one softmax with the retrieved blocks: keys, values [1, H, T, D], their real sizes, and lists."""

    keys: Tensor
    values: Tensor
    sizes: Tensor | None
    lists: BlockLists


def attend_copies(staging: Staging, layer: int, q: Tensor, chosen: BlockLists, window: Window | None = None) -> Tensor:
    """Copy the chosen blocks and attend to them.

    Args:
        staging: Of the pool.
        layer: Which.
        q: Queries [B, H, Q * block, D].
        chosen: Blocks of the pool. Queries that together list more than a stage holds come in parts.
        window: Further keys of the same softmax.

    Returns:
        Like `q`.

    Raises:
        ValueError: One query block lists more than a stage holds.
    """
    size = staging.pool.config.block_tokens
    if not staging.fits(chosen):
        axis = 0 if q.shape[0] > 1 else 2
        count = chosen.lists.shape[axis]
        if count == 1:
            raise ValueError(
                f"top_k of {chosen.lists.shape[3]} is more than can be copied at once: give start(top_k=) at most "
                f"{staging.places // 4}, or WorldModel.from_pretrained a larger memory_budget"
            )
        parts = []
        for start, stop in ((0, count // 2), (count // 2, count)):
            tokens = size if axis == 2 else 1
            some = q.narrow(axis, start * tokens, (stop - start) * tokens)
            near = None if window is None else window._replace(lists=_part(window.lists, axis, start, stop))
            parts.append(attend_copies(staging, layer, some, _part(chosen, axis, start, stop), near))
        return torch.cat(parts, axis)
    keys, values, found, sizes = staging.fetch(layer, chosen)
    if window is not None:
        first = window.keys.shape[2] // size
        found = union_lists(BlockLists(found.lists + first, found.counts), window.lists)
        keys, values = torch.cat([window.keys, keys], 2), torch.cat([window.values, values], 2)
        sizes = None if sizes is None or window.sizes is None else torch.cat([window.sizes, sizes])
    return block_sparse_attention(q, keys, values, *found, q_block=size, kv_block=size, kv_sizes=sizes)


def _part(lists: BlockLists, axis: int, start: int, stop: int) -> BlockLists:
    return BlockLists(*(t.narrow(axis, start, stop - start) for t in lists))
