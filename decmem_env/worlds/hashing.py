"""Integer hashes and value noise: the same bits on every machine (integers and float64 `+ * floor` only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hash32(values: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers to 32 bits, kept in uint64."""
    a = np.asarray(values, np.uint64) & 0xFFFFFFFF
    a ^= a >> np.uint64(16)
    a = (a * 0x7FEB352D) & 0xFFFFFFFF
    a ^= a >> np.uint64(15)
    a = (a * 0x846CA68B) & 0xFFFFFFFF
    return a ^ (a >> np.uint64(16))


def value_noise(size: int, seed: int, salt: int, cell: int) -> NDArray[np.float64]:
    """Smooth noise on a square grid.

    Args:
        size: Side of the grid in blocks.
        seed: Of the world.
        salt: Tells the noises of one world apart.
        cell: Blocks between the random values that are smoothed.

    Returns:
        float64 [size, size] in [0, 1).
    """
    i = np.arange(size // cell + 2, dtype=np.uint64)
    lattice = hash32(i[:, None] * 0x9E3779B1 + hash32(i[None, :] + hash32(np.uint64(seed * 131 + salt))))
    g = lattice.astype(np.float64) / 4294967296.0
    position = np.arange(size) / cell
    k = position.astype(int)
    f = position - k
    f = f * f * (3 - 2 * f)
    rows = g[k] * (1 - f)[:, None] + g[k + 1] * f[:, None]
    return rows[:, k] * (1 - f)[None] + rows[:, k + 1] * f[None]
