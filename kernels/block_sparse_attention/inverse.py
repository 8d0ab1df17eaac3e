"""Inverse lists: for every key block, the query blocks that list it (what dK and dV sum over)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class InverseLists(NamedTuple):
    """Inverse of a lists tensor in compressed rows; build it once and reuse it for every layer with the same lists.

    Attributes:
        offsets: int64 ``[Bl * Hl * NK + 1]``; row ``r = (b * Hl + h) * NK + j`` is ``entries[offsets[r]:offsets[r +
        1]]``.
        entries: int32 ``[Bl * Hl * NQ * L]``, query blocks, ascending within a row; unused past ``offsets[-1]``.
    """

    offsets: Tensor
    entries: Tensor


def invert_lists(lists: Tensor, counts: Tensor, num_blocks: int) -> InverseLists:
    """Invert index lists without a host synchronisation.

    Args:
        lists: int32 ``[Bl, Hl, NQ, L]``, distinct entries per list.
        counts: int32 ``[Bl, Hl, NQ]``.
        num_blocks: number of key blocks NK.

    Returns:
        The inverse; the order is fixed, so sums over it are deterministic.
    """
    batch, heads, num_queries, length = lists.shape
    rows = batch * heads * num_blocks
    listed = torch.arange(length, device=lists.device) < counts[..., None]
    base = torch.arange(batch * heads, device=lists.device, dtype=torch.int32).view(batch, heads, 1, 1) * num_blocks
    # Unused entries sort behind every row.
    key = torch.where(listed, lists + base, rows).flatten()
    order = torch.sort(key, stable=True)
    bounds = torch.arange(rows + 1, device=lists.device, dtype=key.dtype)
    offsets = torch.searchsorted(order.values, bounds)
    entries = (order.indices // length % num_queries).to(torch.int32)
    return InverseLists(offsets, entries)
