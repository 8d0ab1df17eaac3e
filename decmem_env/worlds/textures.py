"""Procedural 16x16 textures with their mip levels: one small table for all renderers.

Patterns (bricks, planks, weaves, speckles) in the manner of Minecraft's: structured contrast, not white noise.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .blocks import COLOURS, NAMES
from .hashing import hash32

SIZE = 16
TEXELS = 256 + 64 + 16 + 4 + 1
FACES = ("side", "top", "bottom")

_ROW, _COLUMN = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")

_BRICKS = ("brick", "slate", "tile", "sandstone", "basalt")
_BOARDS = ("plank", "hay")
_LOGS = ("log", "acacia_log")
_ROUGH = ("cobble", "gravel", "stone", "marble")
_TURF = ("grass", "dry_grass")
_LEAVES = ("leaves", "dark_leaves", "acacia_leaves")
_WOOL = ("red", "blue", "yellow", "white", "black", "orange", "purple", "cyan", "green", "pink")
_FRAMED = ("gold", "glow", "copper", "ice")


def _random(salt: int) -> NDArray[np.float64]:
    return hash32(_ROW * SIZE + _COLUMN + salt * 977).astype(np.float64) / 4294967296.0


def _texture(index: int, name: str, face: int) -> NDArray[np.float64]:
    """Colours of one face, float64 [16, 16, 3] in 0 to 255."""
    i, j = _ROW, _COLUMN
    base = np.array(COLOURS[name], float)
    colour = np.ones((SIZE, SIZE, 3)) * base
    fine = _random(index * 3 + face)
    coarse = np.kron(_random(index * 3 + face + 500)[:8, :8], np.ones((2, 2)))
    level = 1 + 0.22 * (fine - 0.5) + 0.16 * (coarse - 0.5)
    if name in _BRICKS:
        mortar = (i % 4 == 3) | ((j + (i // 4 % 2) * 4) % 8 == 7)
        level = np.where(mortar, 0.62, level)
    elif name in _BOARDS:
        level = level * np.where(i % 4 == 3, 0.68, 1.0)
    elif name in _LOGS:
        level = level * np.where(j % 4 == 3, 0.66, 1.0)
        if face:  # rings
            level = 1 + 0.3 * (((np.maximum(abs(i - 7.5), abs(j - 7.5))).astype(int) % 3) - 1) * 0.6
    elif name in _ROUGH:
        level = 1 + 0.42 * (coarse - 0.5) + 0.16 * (fine - 0.5)
    elif name in _LEAVES or name in _TURF:
        level = 1 + 0.5 * (coarse - 0.5) + 0.3 * (fine - 0.5)
        if name in _TURF and face == 0:  # turf hangs over the earth
            depth = 4 + (hash32(j + index * 31) % np.uint64(3)).astype(int)
            colour = np.where((i < depth)[..., None], base, np.array(COLOURS["dirt"], float))
    elif name in _WOOL:
        level = 1 + 0.18 * (fine - 0.5) + 0.14 * np.where((i // 2 + j // 2) % 2 == 0, 1, -1) * 0.5
        level = np.where((i == 0) | (j == 0), level * 0.78, level)
    elif name in _FRAMED:
        border = (i == 0) | (j == 0) | (i == SIZE - 1) | (j == SIZE - 1)
        level = level * np.where(border, 0.72, 1.0) * np.where(abs(i - j) < 2, 1.15, 1.0)
    elif name == "cactus":
        level = level * np.where(j % 5 == 2, 0.6, 1.0)
    elif name == "sand":  # ripples
        level = level * np.where((i + (j // 3)) % 5 == 0, 0.88, 1.0)
    return np.clip(colour * level[..., None], 0, 255)


@lru_cache(maxsize=1)
def texture_atlas() -> NDArray[np.uint8]:
    """Textures of all block types with their mips.

    Returns:
        uint8 [blocks, 3 faces (side, top, bottom), 341, 3]; mips of side 16, 8, 4, 2, 1 one after the other.
    """
    atlas = np.zeros((len(NAMES), len(FACES), TEXELS, 3), np.uint8)
    for index, name in enumerate(NAMES):
        for face in range(len(FACES)):
            texture = _texture(index, name, face)
            offset = 0
            for lod in range(5):
                side = SIZE >> lod
                mip = texture.reshape(side, 1 << lod, side, 1 << lod, 3).mean((1, 3))
                atlas[index, face, offset : offset + side * side] = (mip.reshape(-1, 3) + 0.5).astype(np.uint8)
                offset += side * side
    return atlas
