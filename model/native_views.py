"""Which remembered views and changes lie near a pose, by `near_views.c`.

Every step asks that of all that every world remembers, several times, and training asks it of every frame of a clip:
for 64 worlds NumPy takes half as long as the network. `keyframes`, `nearest_views` and `changes` define the answers,
and give them where there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..conventions.native import built

if TYPE_CHECKING:
    from .changes import Remembered

_SOURCE = Path(__file__).with_name("near_views.c")


class Distances(ctypes.Structure):
    """What counts as near, in blocks and degrees; `Distances` of `near_views.c`."""

    _fields_ = [
        ("near_blocks", ctypes.c_double),
        ("dreamed_blocks", ctypes.c_double),
        ("near_degrees", ctypes.c_double),
        ("changed_within", ctypes.c_double),
        ("blocks", ctypes.c_double),
        ("degrees", ctypes.c_double),
        ("alike", ctypes.c_double),
    ]


@functools.lru_cache(maxsize=1)
def load() -> NativeViews | None:
    """The library, or None without a compiler."""
    # No fused multiply-add: the same bits as NumPy.
    path = built(_SOURCE, ("-ffp-contract=off",))
    return None if path is None else NativeViews(ctypes.CDLL(str(path)))


def _at(array: NDArray) -> int:
    try:
        start = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]  # twice as fast as the other way
        return ctypes.addressof(start)
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.ctypes.data)


class NativeViews:
    """The library's functions; poses are float64 [n, 5] and [5]."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, count, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        self._since, self._within, self._seen = library.since_change, library.any_within, library.seen_from
        self._since.argtypes, self._since.restype = [count, pointer, pointer, pointer, real], count
        self._within.argtypes, self._within.restype = [count, count, pointer, pointer, real, real], ctypes.c_int
        self._seen.argtypes = [count, *[pointer] * 5, count, ctypes.c_int, *[pointer] * 4]
        self._seen.restype = count
        self._told = library.told_changes
        self._told.argtypes, self._told.restype = [count, *[pointer] * 3, real, count, pointer, pointer], None

    def since(
        self, poses: NDArray[np.float64], hands: NDArray[np.bool_], pose: NDArray[np.float64], blocks: float
    ) -> int:
        """`changes.since_change`, for hands bool [n]."""
        arrays = [np.ascontiguousarray(array) for array in (poses, hands, pose)]
        return int(self._since(len(poses), *map(_at, arrays), blocks))

    def any_within(
        self, poses: NDArray[np.float64], pose: NDArray[np.float64], blocks: float, degrees: float, first: int
    ) -> bool:
        """Whether `keyframes.within` holds of any view from `first` on."""
        arrays = [np.ascontiguousarray(array) for array in (poses, pose)]
        return bool(self._within(len(poses), first, *map(_at, arrays), blocks, degrees))

    def seen_from(
        self, views: Remembered, pose: NDArray[np.float64], count: int, told: bool, distances: Distances
    ) -> NDArray[np.int64] | None:
        """`nearest_views.seen_from` of `count` views, where changes are `told`."""
        columns = views.poses, views.hands, views.generated, views.changes, pose
        arrays = [np.ascontiguousarray(column) for column in columns]
        size = len(arrays[0])
        room = np.empty(size, np.int64), np.empty(size), np.empty(count + 1, np.int64)
        found = self._seen(size, *map(_at, arrays), count, told, *map(_at, room), ctypes.addressof(distances))
        return None if found < 0 else room[2][:found]

    def told_changes(
        self, changes: NDArray[np.float64], eye: NDArray[np.float64], look: NDArray[np.float64], reach: float, most: int
    ) -> NDArray[np.float64]:
        """`changes.told_changes` of at most `most` changes, from an eye [3] that looks along [3]."""
        arrays = [np.ascontiguousarray(array) for array in (changes, eye, look)]
        room, out = np.empty(len(changes)), np.empty((most, 4))
        self._told(len(changes), *map(_at, arrays), reach, most, _at(room), _at(out))
        return out
