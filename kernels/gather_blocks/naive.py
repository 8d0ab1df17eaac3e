"""The copies by plain tensor operations, and the 8-bit storage of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from . import HostSegments

LEVELS = 127


def quantise_blocks(x: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Store each block in 8 bits: the nearest of 255 even steps up to its largest magnitude.

    Args:
        x: ``[..., N, D]``.
        blocks: M; ``N = M * block``.

    Returns:
        int8 ``[..., N, D]`` and scales fp32 ``[..., M]``; ``x`` is about their product.
    """
    parts = x.unflatten(-2, (blocks, -1))
    scales = parts.abs().amax((-2, -1)).float() / LEVELS
    steps = parts.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None, None]
    return steps.round_().to(torch.int8).flatten(-3, -2), scales


def dequantise_blocks(x: Tensor, scales: Tensor) -> Tensor:
    """Inverse of `quantise_blocks`, up to rounding, fp32."""
    return (x.unflatten(-2, (scales.shape[-1], -1)).float() * scales[..., None, None]).flatten(-3, -2)


def gather_blocks_naive(
    keys: Tensor,
    values: Tensor,
    where: Tensor,
    scales: Tensor | None,
    host: HostSegments | None,
    blocks: Tensor,
    out: tuple[Tensor, Tensor],
    block: int,
) -> None:
    """See `gather_blocks`; pages, host memory and outputs must lie on one device.

    Args:
        keys: See `Source`.
        values: See `Source`.
        where: See `Source`.
        scales: See `Source`.
        host: See `Source`.
        blocks: See `gather_blocks`.
        out: See `gather_blocks`.
        block: See `gather_blocks`.
    """
    heads, _, tokens, dim = keys.shape
    parts = tokens // block
    head, place = (blocks.expand(heads, -1) >= 0).nonzero(as_tuple=True)
    found = blocks.expand(heads, -1)[head, place].long()
    frame, part = found // parts, found % parts
    page = where[frame].long()
    for which, (pages, target) in enumerate(zip((keys, values), out, strict=True)):
        copied = torch.empty(len(found), block, dim, dtype=pages.dtype, device=pages.device)
        near = page >= 0
        copied[near] = pages.view(heads, -1, parts, block, dim)[head[near], page[near], part[near]]
        for number, segment in enumerate(host.tensors if host is not None else ()):
            assert host is not None
            far = (page < 0) & ((-1 - page) // host.pages == number)
            inside = (-1 - page[far]) % host.pages
            held = segment[:, host.layer, which].unflatten(2, (parts, block))
            copied[far] = held[inside, head[far], part[far]]
        if scales is not None:
            copied = (copied.float() * scales[which, head, frame, part][:, None, None]).to(target.dtype)
        target[head, place] = copied
