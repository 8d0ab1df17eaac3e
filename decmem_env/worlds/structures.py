"""What stands on the ground: trees, cacti, rocks, and buildings and monuments of many kinds and colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import ID
from .hashing import hash32

_ROCKS = ("cobble", "basalt", "slate")
_WALLS = (
    "plank brick cobble sandstone marble tile slate copper hay white red blue yellow".split()
)  # fmt: skip
_ROOFS = "red blue orange purple cyan green pink black brick slate".split()
_COLOURS = "red blue yellow white black orange purple cyan green pink gold glow".split()
_PLOT = 16  # blocks between plots, about three in four of which are built on


@dataclass(frozen=True)
class Landmark:
    """A building or monument.

    Attributes:
        kind: house, tower, pyramid, arch, wall or monument.
        x: Blocks east, near its corner.
        y: Ground level.
        z: Blocks south.
    """

    kind: str
    x: float
    y: float
    z: float


class Builder:
    """Puts things on the ground of one world.

    Attributes:
        blocks: uint8 [X, Z, Y], written in place.
        top: int [X, Z], first free height above the ground.
        biome: uint8 [X, Z], index into `terrain.BIOMES`.
        water: Height of the water's surface.
        landmarks: What was built so far.
    """

    def __init__(
        self,
        blocks: NDArray[np.uint8],
        top: NDArray[np.int64],
        biome: NDArray[np.uint8],
        water: int,
        rng: np.random.Generator,
    ) -> None:
        self.blocks, self.top, self.biome, self.water, self.rng = blocks, top, biome, water, rng
        self.landmarks: list[Landmark] = []

    def box(self, x0: int, x1: int, z0: int, z1: int, y0: int, y1: int, block: int) -> None:
        """Fill a box (ends excluded), kept off the world's faces."""
        size_x, size_z, size_y = self.blocks.shape
        self.blocks[
            max(x0, 1) : min(x1, size_x - 1), max(z0, 1) : min(z1, size_z - 1), max(y0, 1) : min(y1, size_y - 1)
        ] = block

    def between(self, low: int, high: int) -> int:
        """A random integer from low to high - 1."""
        return int(self.rng.integers(low, high))

    def pick(self, names: list[str] | tuple[str, ...]) -> int:
        """Id of a random one of the named blocks."""
        return ID[names[int(self.rng.integers(len(names)))]]

    def plants(self, count: int) -> None:
        """Scatter trees by biome, cacti in the desert and rocks."""
        size_x, size_z, _ = self.blocks.shape
        for _ in range(count):
            x = int(self.rng.integers(12, size_x - 12))
            z = int(self.rng.integers(12, size_z - 12))
            y = int(self.top[x, z])
            if y <= self.water:
                continue
            biome, chance = int(self.biome[x, z]), self.rng.random()
            if biome == 1:
                if chance < 0.5:
                    self.blocks[x, z, y : y + self.between(2, 5)] = ID["cactus"]
            elif chance < 0.08:
                w = self.between(1, 3)
                self.box(x - w, x + w, z - w, z + w, y - 1, y + w, self.pick(_ROCKS))
            elif chance >= 0.55:
                self._tree(x, y, z, biome)

    def _tree(self, x: int, y: int, z: int, biome: int) -> None:
        height = self.between(4, 8)
        crown = y + height
        if biome == 2:  # acacia: a flat roof of leaves
            log, leaf = ID["acacia_log"], ID["acacia_leaves"]
            self.box(x - 3, x + 4, z - 3, z + 4, crown - 1, crown + 1, leaf)
        elif biome == 3:  # fir: three tiers
            log, leaf = ID["log"], ID["dark_leaves"]
            for q in range(3):
                self.box(x - 2 + q, x + 3 - q, z - 2 + q, z + 3 - q, crown - 4 + 2 * q, crown - 2 + 2 * q, leaf)
        else:
            log, leaf = ID["log"], ID["dark_leaves" if self.rng.random() < 0.4 else "leaves"]
            self.box(x - 2, x + 3, z - 2, z + 3, crown - 2, crown, leaf)
            self.box(x - 1, x + 2, z - 1, z + 2, crown, crown + 1, leaf)
        self.blocks[x, z, y:crown] = log

    def buildings(self) -> None:
        """Put something on about three in four of the dry plots."""
        size_x, size_z, _ = self.blocks.shape
        kinds = (self._house, self._house, self._tower, self._pyramid, self._arch, self._wall, self._monument)
        for plot_x in range(14, size_x - 22, _PLOT):
            for plot_z in range(14, size_z - 22, _PLOT):
                if self.rng.random() < 0.25:
                    continue
                x = plot_x + self.between(0, 6)
                z = plot_z + self.between(0, 6)
                y = int(self.top[x + 2, z + 2])
                if y <= self.water:
                    continue
                wall, roof = self.pick(_WALLS), self.pick(_ROOFS)
                kind = kinds[self.between(0, len(kinds))](x, y, z, wall, roof)
                self.landmarks.append(Landmark(kind, x + 2.0, float(y), z + 2.0))

    def _house(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        w, d, h = self.between(5, 9), self.between(5, 9), self.between(3, 6)
        self.box(x, x + w, z, z + d, y - 3, y + h, wall)
        self.box(x + 1, x + w - 1, z + 1, z + d - 1, y, y + h, 0)
        self.box(x + w // 2, x + w // 2 + 1, z, z + 1, y, y + 2, 0)  # door
        self.box(x, x + 1, z + d // 2, z + d // 2 + 2, y + 1, y + 2, 0)  # window
        for q in range(min(w, d) // 2 + 1):
            self.box(x - 1 + q, x + w + 1 - q, z - 1 + q, z + d + 1 - q, y + h + q, y + h + q + 1, roof)
        return "house"

    def _tower(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        w, h = self.between(3, 5), self.between(9, 18)
        self.box(x, x + w, z, z + w, y - 2, y + h, wall)
        for q in range(2, h, 4):
            self.box(x, x + w, z, z + w, y + q, y + q + 1, roof)
        self.box(x - 1, x + w + 1, z - 1, z + w + 1, y + h, y + h + 1, roof)
        return "tower"

    def _pyramid(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        w = self.between(4, 8)
        for q in range(w):
            self.box(x + q, x + 2 * w - q, z + q, z + 2 * w - q, y - 1 + q, y + q, wall if q % 2 else roof)
        return "pyramid"

    def _arch(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        h, w = self.between(4, 7), self.between(4, 8)
        self.box(x, x + 1, z, z + 2, y - 2, y + h, wall)
        self.box(x + w, x + w + 1, z, z + 2, y - 2, y + h, wall)
        self.box(x, x + w + 1, z, z + 2, y + h, y + h + 1, roof)
        return "arch"

    def _wall(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        for q in range(self.between(6, 12)):
            self.box(x + q, x + q + 1, z, z + 1, y - 2, y + self.between(1, 5), wall)
        return "wall"

    def _monument(self, x: int, y: int, z: int, wall: int, roof: int) -> str:
        for q in range(self.between(5, 11)):
            self.box(x, x + 2, z, z + 2, y + q, y + q + 1, self.pick(_COLOURS))
        self.box(x - 1, x + 3, z - 1, z + 3, y - 2, y, wall)
        return "monument"


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order that depends on the seed alone."""
    return np.argsort(hash32(np.arange(count) + seed * 7))
