"""Frames of a walk whose world changes on the way: edits are applied between the frames and undone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .renderer import Renderer

Edits = NDArray[np.int32]  # [E, 5] rows (t, x, z, y, block), t ascending: frame t is the first that shows the change
Draw = Callable[[int, int], None]  # (first frame, behind the last frame)


def no_edits() -> Edits:
    """The edits of a walk that changes nothing."""
    return np.zeros((0, 5), np.int32)


def stages(edits: Edits, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a walk where its world changes.

    Args:
        edits: int32 [E, 5].
        length: T, frames of the walk.

    Yields:
        (first edit, behind the last edit, first frame, behind the last frame): before these frames are drawn, these
        edits take effect. Frames cover 0 to T without gaps; edits at T or later are left out.
    """
    times = edits[:, 0]
    starts = np.unique(np.concatenate([[0], times[(times > 0) & (times < length)]]))
    stops = np.append(starts[1:], length)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        first = 0 if start == 0 else int(np.searchsorted(times, start))
        yield first, int(np.searchsorted(times, start, side="right")), start, stop


def draw_edited(blocks: Tensor, edits: Edits, length: int, draw: Draw) -> None:
    """Call `draw` for stretches of frames while the edits that they show are in the grid.

    The grid is changed in place, cell by cell, and is as before on return, whatever happens: a walk with edits costs
    no copy of a world.

    Args:
        blocks: uint8 [X, Z, Y] of one world, on any device.
        edits: int32 [E, 5].
        length: Frames of the walk.
        draw: Draws frames `first` to `stop - 1` from `blocks` as they are then.
    """
    if not len(edits):
        draw(0, length)
        return
    x, z, y = torch.from_numpy(edits[:, 1:4].astype(np.int64)).to(blocks.device).unbind(1)
    before = blocks[x, z, y]
    rows = edits.tolist()  # plain numbers: writing one cell then needs no wait for a GPU
    try:
        for first, last, start, stop in stages(edits, length):
            for _, east, south, up, block in rows[first:last]:
                blocks[east, south, up] = block
            draw(start, stop)
    finally:
        blocks[x, z, y] = before


def render_edited(renderer: Renderer, blocks: Tensor, poses: NDArray[np.float64], edits: Edits) -> Tensor:
    """Frames of one walk with its edits.

    Args:
        renderer: On the device of the blocks.
        blocks: uint8 [1, X, Z, Y], as before on return.
        poses: float64 [T, 5].
        edits: int32 [E, 5].

    Returns:
        uint8 [T, H, W, 3].
    """
    parts: list[Tensor] = []

    def draw(start: int, stop: int) -> None:
        parts.append(renderer.render(blocks, np.zeros(stop - start, np.int64), poses[start:stop]).rgb)

    draw_edited(blocks[0], edits, len(poses), draw)
    return torch.cat(parts)
