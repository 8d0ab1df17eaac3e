"""Integer hashes and value noise: the same bits on every machine (integers and float64 `+ * floor` only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


class Stream:
    """A small splitmix64 generator of integers; numpy's own streams may change between versions."""

    def __init__(self, *key: int) -> None:
        """Start the stream of a key of integers."""
        self._state = 0x9E3779B97F4A7C15
        for part in key:
            self._state = (self._state ^ (part & _MASK)) & _MASK
            self.bits()

    def bits(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, count: int) -> int:
        """An integer from 0 to count - 1."""
        return ((self.bits() >> 32) * count) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of a hundred calls."""
        return self.below(100) < percent

    def pick(self, options: tuple[int, ...] | list[int]) -> int:
        """One of the options."""
        return options[self.below(len(options))]


def hash2(x: NDArray[np.int64], z: NDArray[np.int64], seed: int) -> NDArray[np.uint32]:
    """Hash integer coordinates (broadcast against each other) to 32 bits."""
    a = np.asarray(x).astype(np.uint32) * np.uint32(0x8DA6B343)
    b = np.asarray(z).astype(np.uint32) * np.uint32(0xD8163841)
    h = (a ^ b) + np.uint32(seed & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


def value_noise(size: int, period: int, seed: int) -> NDArray[np.float64]:
    """Smooth noise on a square grid.

    Args:
        size: Side of the grid in blocks.
        period: Blocks between lattice points.
        seed: Any integer.

    Returns:
        float64 [size, size] in [0, 1).
    """
    cells = size // period + 2
    lattice = hash2(np.arange(cells)[:, None], np.arange(cells)[None, :], seed).astype(np.float64) / 4294967296.0
    position = np.arange(size)
    cell = position // period
    t = (position - cell * period) / float(period)
    weight = t * t * (3.0 - 2.0 * t)
    rows = lattice[cell] * (1.0 - weight)[:, None] + lattice[cell + 1] * weight[:, None]
    return rows[:, cell] * (1.0 - weight)[None, :] + rows[:, cell + 1] * weight[None, :]
