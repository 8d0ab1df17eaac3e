"""Seeded voxel worlds: ground, water, biomes, and everything that stands on them.

A world is a pure function of its seed: integer hashes, float64 sums and products, and the integer stream of a PCG64
generator. It is finite and does not wrap; a ring of cliffs keeps players inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import ID
from .hashing import value_noise
from .structures import Builder, Landmark, shuffled

X = Z = 256
Y = 64
WATER_LEVEL = 20  # the water's surface; ground below it is lake bed
BIOMES = ("plains", "desert", "savanna", "ice")

_PLANTS = 900
_CLIFF = 10  # width of the ring of cliffs
_FILL = ("dirt", "sand", "dirt", "dirt")  # by biome: the three blocks below the surface
_SURFACE = ("grass", "sand", "dry_grass", "snow")
_PATCHES = ("gravel", "sandstone", "mud", "ice")


@dataclass(frozen=True, eq=False)
class World:
    """One world.

    Attributes:
        seed: What it was made from.
        blocks: uint8 [X, Z, Y] block ids (y fastest), not to be written: `Simulator` edits its own copy.
        spawn: float64 [5], pose on dry open ground near the middle.
        landmarks: Buildings and monuments.
        biome: uint8 [X, Z], index into `BIOMES`.
        top: int [X, Z], first free height above the bare ground.
    """

    seed: int
    blocks: NDArray[np.uint8]
    spawn: NDArray[np.float64]
    landmarks: list[Landmark]
    biome: NDArray[np.uint8]
    top: NDArray[np.int64]

    def ground(self, x: int, z: int) -> float | None:
        """Height of dry open standing ground at a column, or None."""
        y = int(self.top[x, z])
        if y <= WATER_LEVEL or self.blocks[x - 1 : x + 2, z - 1 : z + 2, y : y + 3].any():
            return None
        return float(y)


def generate_world(seed: int) -> World:
    """Make the world of a seed, the same on every machine.

    Args:
        seed: 0 or more.

    Raises:
        ValueError: A negative seed.
    """
    if int(seed) < 0:
        raise ValueError(f"world seed {seed} is negative: expected 0 or more")
    seed = int(seed)
    rng = np.random.default_rng([seed, 7])
    top, biome = _heights(seed), _biomes(seed)
    blocks = _ground(seed, top, biome)
    builder = Builder(blocks, top, biome, WATER_LEVEL, rng)
    builder.plants(_PLANTS)
    builder.buildings()
    return World(seed, blocks, _spawn(blocks, top, seed, rng), builder.landmarks, biome, top)


def _heights(seed: int) -> NDArray[np.int64]:
    def noise(salt: int, cell: int) -> NDArray[np.float64]:
        return value_noise(X, seed, salt, cell)

    rise = noise(1, 64) * 9 + noise(2, 32) * 6 + noise(3, 16) * 3 + noise(4, 8) * 1.0
    hill = np.clip(noise(5, 48) * 2.4 - 1.2, 0, 1)
    top = (13 + (rise + hill * hill * 16)).astype(int)
    i = np.arange(X)
    from_side = np.minimum(i, X - 1 - i)
    edge = np.minimum(from_side[:, None], from_side[None, :])
    # Steps of three blocks: too high to walk or jump up.
    top = np.where(edge < _CLIFF, np.maximum(top, 30 + (_CLIFF - edge) * 3), top)
    return np.clip(top, 4, Y - 4)


def _biomes(seed: int) -> NDArray[np.uint8]:
    warm, moist = value_noise(X, seed, 6, 80), value_noise(X, seed, 7, 80)
    hot = np.where(moist > 0.5, 1, 2)
    return np.where(warm > 0.62, hot, np.where(warm < 0.36, 3, 0)).astype(np.uint8)


def _ids(names: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.array([ID[name] for name in names], np.uint8)


def _ground(seed: int, top: NDArray[np.int64], biome: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height = np.arange(Y)[None, None]
    above = top[:, :, None]
    blocks = np.zeros((X, Z, Y), np.uint8)
    blocks[:] = np.where(height < above - 3, ID["stone"], np.where(height < above, _ids(_FILL)[biome][:, :, None], 0))
    surface = np.where(top <= WATER_LEVEL, ID["sand"], _ids(_SURFACE)[biome])
    patch = (value_noise(X, seed, 8, 12) > 0.78) & (top > WATER_LEVEL)
    surface = np.where(patch, _ids(_PATCHES)[biome], surface)
    i, j = np.meshgrid(np.arange(X), np.arange(Z), indexing="ij")
    blocks[i, j, top - 1] = surface
    blocks[(height >= above) & (height < WATER_LEVEL)] = ID["water"]
    frozen = np.where((biome == 3) & (top < WATER_LEVEL))
    blocks[frozen[0], frozen[1], WATER_LEVEL - 1] = ID["ice"]
    return blocks


def _spawn(
    blocks: NDArray[np.uint8], top: NDArray[np.int64], seed: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Level, dry, open ground among the 64 x 64 columns in the middle."""
    for place in shuffled(64 * 64, seed):
        x, z = 96 + int(place) // 64, 96 + int(place) % 64
        y = int(top[x, z])
        level = abs(int(top[x + 1, z]) - y) <= 1
        if y > WATER_LEVEL and level and not blocks[x - 1 : x + 2, z - 1 : z + 2, y : y + 3].any():
            return np.array([x + 0.5, y, z + 0.5, 0, 15.0 * int(rng.integers(24))])
    return np.array([128.5, float(max(top[128, 128], WATER_LEVEL)), 128.5, 0, 0])
