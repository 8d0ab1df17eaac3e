"""Where listed blocks stand in a stage: those that it holds stay, new ones take the places used longest ago.

A stage is a buffer of copied blocks; a head has places of its own. In plain operations this takes some seventy launches
and three sorts, more time than attention itself; the kernel does it in one. Shapes: H heads, S places, N blocks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .naive import place_blocks_naive

_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["Part", "Stage", "place_blocks", "place_blocks_naive"]


class Stage(NamedTuple):
    """What a stage holds. Places count from 1; place 0 and block N stand for none.

    Attributes:
        held: int64 ``[H, 1 + S]``, the block in each place; N if there is none.
        used: int64 ``[H, 1 + S]``, the last call that needed it.
        place: int32 ``[H, N + 1]``, the place of each block, or 0.
    """

    held: Tensor
    used: Tensor
    place: Tensor


class Part(NamedTuple):
    """Blocks ``first`` to ``last - 1`` of every frame have the places ``start`` to ``stop - 1`` (counted from 0)."""

    first: int
    last: int
    start: int
    stop: int


def place_blocks(
    lists: Tensor, counts: Tensor, stage: Stage, parts: Sequence[Part], frame: int, clock: int, lately: int
) -> tuple[Tensor, Tensor]:
    """Give every listed block a place. The stage's tensors are updated.

    Args:
        lists: int32 ``[B, H, Q, L]``, block numbers.
        counts: int32 ``[B, H, Q]``, entries of each list.
        stage: Changed. No part may be given more distinct blocks than it has places.
        parts: They divide the blocks of a frame, and the places.
        frame: Blocks of a frame.
        clock: Number of this call, above all numbers in ``stage.used``.
        lately: Blocks used since this call are given up last. The kernel knows ages only roughly.

    Returns:
        Places int32 like ``lists``, from 0, 0 past the counts; and int32 ``[H, S]``, the block that each place now
        holds and did not before, or -1.
    """
    if lists.is_cuda and _HAS_TRITON:
        from .triton import place_blocks_triton

        return place_blocks_triton(lists, counts, stage, parts, frame, clock, lately)
    return place_blocks_naive(lists, counts, stage, parts, frame, clock)
