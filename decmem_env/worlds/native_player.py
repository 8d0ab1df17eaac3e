"""Movement of players by `player.c`; `player.py` defines it, and does it where there is no compiler."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..conventions.native import built
from .blocks import PASSABLE, WATER
from .terrain import X, Y, Z

_SOURCE = Path(__file__).with_name("player.c")
_SIZE = np.array([X, Z, Y], np.int64)
_PASSABLE = PASSABLE.astype(np.uint8)


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The library with its argument types set, or None without a compiler."""
    # No fused multiply-add: the same bits as NumPy.
    path = built(_SOURCE, ("-ffp-contract=off",))
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    library.move_players.argtypes = [ctypes.c_int64, *[pointer] * 3, ctypes.c_int, *[pointer] * 4]
    library.move_players.restype = None
    return library


def move_native(
    library: ctypes.CDLL,
    worlds: NDArray[np.uint64],
    positions: NDArray[np.float64],
    rise: NDArray[np.float64],
    wish: NDArray[np.float64],
    jump: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One tick.

    Args:
        library: Of `load`.
        worlds: uint64 [n], address of each player's blocks uint8 [X, Z, Y].
        positions: [n, 3].
        rise: [n], vertical speed.
        wish: [n, 2], walking in blocks east and south on dry land.
        jump: [n].

    Returns:
        New positions and vertical speeds.
    """
    to, speed = np.array(positions, np.float64, order="C"), np.array(rise, np.float64)
    wishes, jumps = np.ascontiguousarray(wish, np.float64), np.ascontiguousarray(jump, np.uint8)
    arrays = (to, speed, wishes, jumps)
    library.move_players(
        len(to),
        worlds.ctypes.data,
        _SIZE.ctypes.data,
        _PASSABLE.ctypes.data,
        int(WATER),
        *(a.ctypes.data for a in arrays),
    )
    return to, speed
