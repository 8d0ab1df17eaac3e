"""How attention spreads: the shares that lie in small and in large weights (DecMem Figures 3 and 10).

For each query the weights below 0.02 ("negligible") and above 0.05 ("critical") are summed. The paper does not say over
which units it takes them, so both are measured: weights of tokens, and of memory blocks (the sums over their tokens).
Everything is computed naively from the queries and keys of a step; nothing is spent while no one watches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import BlockLists

NEGLIGIBLE, CRITICAL = 0.02, 0.05


class Listed(NamedTuple):
    """Keys that queries see.

    Attributes:
        found: Tiles of keys in the pool, for every tile of queries: lists int32 [1, H or 1, tiles, L] and counts.
        query_tile: Queries a tile.
        key_tile: Keys a tile.
        sizes: int32 [tiles of the pool], real keys of each, or None.
        factor: On the logits, beside 1 / sqrt(D).
    """

    found: BlockLists
    query_tile: int
    key_tile: int
    sizes: Tensor | None = None
    factor: float = 1.0


class Dispersion:
    """Sums what one pass's layers report; set it as `Streamer.watcher` while a session takes a step.

    Args:
        block: Tokens of a memory block.
        queries: Last tokens of a pass that count (those of the frames being denoised).
    """

    def __init__(self, block: int, queries: int) -> None:
        self._block, self._queries = block, queries
        self._shares: list[dict[str, float]] = []

    def __call__(self, q: Tensor, keys: Tensor, softmaxes: Sequence[Sequence[Listed]]) -> None:
        """Take in a layer.

        Args:
            q: [1, H, T, D].
            keys: [1, H, K, D], the pool.
            softmaxes: Of each softmax (two where a gate adds two branches), the parts that share it.
        """
        for parts in softmaxes:
            self._shares.append(shares(q, keys, parts, self._block, self._queries))

    def mean(self) -> dict[str, float]:
        """Mean over layers, branches, heads and queries: `token_negligible`, `token_critical`, `block_...`."""
        return {name: sum(s[name] for s in self._shares) / len(self._shares) for name in self._shares[0]}


def shares(q: Tensor, keys: Tensor, parts: Sequence[Listed], block: int, queries: int) -> dict[str, float]:
    """Shares of one softmax; see `Dispersion`.

    Raises:
        ValueError: More than one row.
    """
    if len(q) != 1:
        raise ValueError(f"dispersion: {len(q)} rows, watch one session at a time")
    logits = torch.cat([_logits(q[0], keys[0], part, queries) for part in parts], -1)
    weights = logits.softmax(-1)
    # Every part's keys are whole blocks, so runs of `block` belong together.
    blocks = weights.unflatten(-1, (-1, block)).sum(-1)
    result = {}
    for unit, w in (("token", weights), ("block", blocks)):
        result[f"{unit}_negligible"] = float((w * (w < NEGLIGIBLE)).sum(-1).mean())
        result[f"{unit}_critical"] = float((w * (w > CRITICAL)).sum(-1).mean())
    return result


def _logits(q: Tensor, keys: Tensor, part: Listed, queries: int) -> Tensor:
    """Logits of the last queries [H, queries, L * key_tile]; -inf where there is no key."""
    heads, _, dim = q.shape
    tiles = queries // part.query_tile
    lists = part.found.lists[0, :, -tiles:].expand(heads, -1, -1)
    counts = part.found.counts[0, :, -tiles:].expand(heads, -1)
    index = lists.long()
    held = keys.unflatten(1, (-1, part.key_tile))
    taken = torch.stack([held[h][index[h]] for h in range(heads)])  # [H, tiles, L, key_tile, D]
    asked = q[:, -queries:].unflatten(1, (tiles, part.query_tile))
    logits = torch.einsum("htqd,htlkd->htqlk", asked.float(), taken.float()) * (part.factor * dim**-0.5)
    live = torch.arange(lists.shape[-1], device=q.device) < counts[..., None]
    live = live[..., None].expand(*live.shape, part.key_tile)
    if part.sizes is not None:
        live = live & (torch.arange(part.key_tile, device=q.device) < part.sizes[index][..., None])
    return logits.masked_fill(~live[:, :, None], -torch.inf).flatten(3).flatten(1, 2)
