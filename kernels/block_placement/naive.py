"""The definition, in plain tensor operations: exactly the places used longest ago are given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from . import Part, Stage


def listed_blocks(lists: Tensor, counts: Tensor, none: int) -> Tensor:
    """Lists as int64 ``[H, B, Q, L]``, with ``none`` past the counts."""
    listed = torch.arange(lists.shape[3], device=lists.device) < counts[..., None]
    return torch.where(listed, lists, none).transpose(0, 1).long()


def place_blocks_naive(
    lists: Tensor, counts: Tensor, stage: Stage, parts: Sequence[Part], frame: int, clock: int
) -> tuple[Tensor, Tensor]:
    """See :func:`.place_blocks`."""
    held, used, place = stage
    none = place.shape[1] - 1
    index = listed_blocks(lists, counts, none)
    listed = index.flatten(1)
    here = place.gather(1, listed).long()
    used.scatter_(1, here, clock)
    blocks = torch.where(here == 0, listed, none).sort(1).values
    new = blocks != none
    new[:, 1:] &= blocks[:, 1:] != blocks[:, :-1]
    target = torch.zeros_like(blocks)
    inside = blocks % frame
    for part in parts:
        mine = new & (part.first <= inside) & (inside < part.last)
        oldest = used[:, 1 + part.start : 1 + part.stop].argsort(1)  # what this call needs comes last
        rank = (mine.cumsum(1) - 1).clamp_(0, oldest.shape[1] - 1)
        target = torch.where(mine, oldest.gather(1, rank) + (1 + part.start), target)
    place.scatter_(1, held.gather(1, target), 0)
    blocks = torch.where(new, blocks, none)
    held.scatter_(1, target, blocks)
    held[:, 0] = none
    used.scatter_(1, target, clock)
    place.scatter_(1, blocks, target.int())
    fresh = torch.full_like(held, none).scatter_(1, target, blocks)[:, 1:]
    places = place.gather(1, listed).view_as(index).transpose(0, 1) - 1
    return places.clamp_min_(0), torch.where(fresh < none, fresh, -1).int()
