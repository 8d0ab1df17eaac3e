"""What a player points at: the first solid block along the view ray, and the free cell before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions.poses import EYE_HEIGHT, HAND_REACH, look_vector
from .blocks import PASSABLE
from .terrain import X, Y, Z

Cell = tuple[int, int, int]


class Edit(NamedTuple):
    """One block that a player changed.

    Attributes:
        player: Which player.
        x: Cell east.
        y: Cell up.
        z: Cell south.
        block: Its new id.
    """

    player: int
    x: int
    y: int
    z: int
    block: int


def target(
    blocks: NDArray[np.uint8], pose: NDArray[np.float64], reach: float = HAND_REACH
) -> tuple[Cell | None, Cell | None]:
    """Walk the cells along the view ray.

    Args:
        blocks: uint8 [X, Z, Y].
        pose: [5].
        reach: Blocks from the eye.

    Returns:
        The cell (x, y, z) of the solid block and the free cell in front of the face that is seen; (None, None) when
        nothing solid is in reach, and no free cell when the eye itself is in a solid block.
    """
    eye = pose[:3] + np.array([0.0, EYE_HEIGHT, 0.0])
    direction = look_vector(pose)
    cell = np.floor(eye).astype(int)
    step = np.where(direction < 0, -1, 1)
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.abs(direction)
    crossing = np.where(direction < 0, eye - cell, cell + 1 - eye)
    crossing = np.where(direction == 0, np.inf, crossing * np.where(direction == 0, 1.0, inverse))
    before: Cell | None = None
    travelled = 0.0
    while travelled <= reach:
        x, y, z = (int(v) for v in cell)
        if not (0 <= x < X and 0 <= z < Z and y >= 0):
            return None, None
        if y < Y:
            if not PASSABLE[blocks[x, z, y]]:
                return (x, y, z), before
            before = (x, y, z)
        axis = int(crossing.argmin())
        travelled = float(crossing[axis])
        crossing[axis] += inverse[axis]
        cell[axis] += step[axis]
    return None, None
