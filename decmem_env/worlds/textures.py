"""Procedural 16x16 textures with their mip levels: one small table for all renderers.

Every texture is a pattern of a few levels (bricks, planks, ripples, speckles) over a palette, in the manner of
Minecraft's: strong, structured contrast, not white noise. Levels 16, 8, 4, 2, 1 follow each other in 341 texels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .blocks import face_textures
from .hashing import hash2

SIZE = 16
TEXELS = 256 + 64 + 16 + 4 + 1

Image = NDArray[np.float64]
Colour = tuple[int, int, int]

_U = np.arange(SIZE)[None, :].repeat(SIZE, 0)
_V = np.arange(SIZE)[:, None].repeat(SIZE, 1)


def _noise(seed: int, su: int = 1, sv: int = 1) -> Image:
    """Cells of su x sv texels with a random level each, in [-1, 1]."""
    return hash2(_V // sv, _U // su, 7919 * seed + 13).astype(np.float64) / 2147483648.0 - 1.0


def _paint(colour: Colour, level: Image) -> Image:
    """Scale a colour by 1 + level."""
    return np.asarray(colour, np.float64)[None, None, :] * (1.0 + level[..., None])


def _speckle(colour: Colour, seed: int, fine: float, coarse: float) -> Image:
    return _paint(colour, fine * _noise(seed) + coarse * _noise(seed + 1, 4, 2) + 0.5 * coarse * _noise(seed + 2, 2, 4))


def _bricks(colour: Colour, mortar: Colour, seed: int, width: int = 8, height: int = 4) -> Image:
    row = _V // height
    shifted = (_U + (row % 2) * (width // 2)) % SIZE
    joint = (_V % height == height - 1) | (shifted % width == width - 1)
    each = hash2(row, shifted // width, seed).astype(np.float64) / 2147483648.0 - 1.0
    edge = np.where(_V % height == 0, 0.12, 0.0)
    body = _paint(colour, 0.16 * each + 0.06 * _noise(seed) + edge)
    return np.where(joint[..., None], _paint(mortar, 0.08 * _noise(seed + 5)), body)


def _planks(colour: Colour, seed: int) -> Image:
    board = _V // 4
    each = hash2(board, board * 0, seed).astype(np.float64) / 2147483648.0 - 1.0
    grain = 0.09 * _noise(seed + 1, 5, 1)
    level = 0.1 * each + grain
    level = np.where(_V % 4 == 3, -0.42, level)
    end = (_U == (board * 7 + 3) % SIZE) & (_V % 4 != 3)
    return _paint(colour, np.where(end, -0.34, level))


def _bark(colour: Colour, seed: int) -> Image:
    return _paint(colour, 0.26 * _noise(seed, 2, 8) + 0.12 * _noise(seed + 1, 1, 4))


def _birch_bark(seed: int) -> Image:
    dark = _noise(seed, 5, 2) > 0.62
    return np.where(
        dark[..., None], _paint((52, 50, 46), 0 * _noise(seed)), _paint((216, 214, 204), 0.06 * _noise(seed))
    )


def _rings(colour: Colour, bark: Colour) -> Image:
    ring = np.maximum(np.abs(2 * _U - 15), np.abs(2 * _V - 15)) // 2
    level = np.where(ring % 2 == 0, 0.1, -0.16)
    return np.where((ring >= 7)[..., None], _paint(bark, 0.1 * _noise(3)), _paint(colour, level))


def _leaves(colour: Colour, seed: int) -> Image:
    level = 0.22 * _noise(seed, 2, 2) + 0.16 * _noise(seed + 1)
    return _paint(colour, np.where(_noise(seed + 2, 2, 2) > 0.6, -0.52, level))


def _capped(cap: Image, below: Image, seed: int, depth: int = 4) -> Image:
    edge = depth + hash2(_U, _U * 0, seed).astype(np.int64) % 3 - 1
    return np.where((_V < edge)[..., None], cap, below)


def _ripples(colour: Colour, seed: int, amount: float) -> Image:
    wave = (_V + hash2(_U // 4, _U * 0, seed).astype(np.int64) % 3) % 5
    return _paint(colour, np.where(wave == 0, -amount, 0.4 * amount) + 0.06 * _noise(seed))


def _cobble(colour: Colour, seed: int, moss: bool = False) -> Image:
    points = [(2, 3), (7, 1), (12, 3), (4, 8), (10, 8), (15, 8), (1, 13), (7, 13), (12, 13)]
    best = np.full((SIZE, SIZE), 10**6)
    second = best.copy()
    which = np.zeros((SIZE, SIZE), np.int64)
    for index, (pu, pv) in enumerate(points):
        du = np.minimum(np.abs(_U - pu), SIZE - np.abs(_U - pu))
        dv = np.minimum(np.abs(_V - pv), SIZE - np.abs(_V - pv))
        distance = du * du + dv * dv
        nearer = distance < best
        second = np.where(nearer, best, np.minimum(second, distance))
        which = np.where(nearer, index, which)
        best = np.minimum(best, distance)
    each = hash2(which, which * 0, seed).astype(np.float64) / 2147483648.0 - 1.0
    image = _paint(colour, np.where(second - best < 5, -0.48, 0.18 * each + 0.07 * _noise(seed)))
    if moss:
        image = np.where((_noise(seed + 3, 3, 3) > 0.1)[..., None], image * np.array([0.62, 0.95, 0.5]), image)
    return image


def _framed(colour: Colour, frame: Colour, seed: int, inner: float = 0.08) -> Image:
    border = (_U == 0) | (_V == 0) | (_U == 15) | (_V == 15)
    ridge = (_U == 1) | (_V == 1)
    body = _paint(colour, np.where(ridge, 0.18, inner * _noise(seed, 4, 4)))
    return np.where(border[..., None], _paint(frame, 0 * _noise(1)), body)


def _wool(colour: Colour, seed: int) -> Image:
    weave = np.where((_U // 2 + _V // 2) % 2 == 0, 0.07, -0.07)
    border = (_U % 16 == 0) | (_V % 16 == 15)
    return _paint(colour, np.where(border, -0.26, weave + 0.05 * _noise(seed)))


def _glass() -> Image:
    border = (_U == 0) | (_V == 0) | (_U == 15) | (_V == 15) | (_U == 8)
    streak = (_U + _V) % 11 < 2
    body = _paint((104, 160, 196), np.where(streak, 0.4, 0.0))
    return np.where(border[..., None], np.array([222.0, 232.0, 236.0]), body)


def _layered(colour: Colour, seed: int) -> Image:
    level = np.select([_V < 3, _V == 3, _V == 11, _V > 11], [0.1, -0.3, -0.26, 0.02 * _noise(seed)], -0.06)
    return _paint(colour, level + 0.07 * _noise(seed, 4, 1))


def _ore(spot: Colour, seed: int) -> Image:
    lump = _noise(seed, 3, 3) > 0.45
    return np.where(lump[..., None], _paint(spot, 0.1 * _noise(seed)), _stone(1))


def _stone(seed: int) -> Image:
    crack = (_noise(seed + 7, 5, 2) > 0.55) & (_V % 3 == 0)
    return _paint((128, 128, 130), np.where(crack, -0.3, 0.1 * _noise(seed, 4, 2) + 0.06 * _noise(seed)))


def _flowers() -> Image:
    image = _speckle((96, 152, 58), 31, 0.14, 0.1)
    for u, v, colour in ((3, 4, (226, 60, 52)), (11, 2, (244, 214, 62)), (8, 10, (232, 236, 240)), (13, 12, (206, 92, 210)),
                         (2, 12, (244, 214, 62))):  # fmt: skip
        image[v : v + 2, u : u + 2] = colour
    return image


def _cactus() -> Image:
    rib = _U % 4
    spine = (rib == 1) & (_V % 4 == (_U // 4) % 4)
    body = _paint((58, 124, 46), np.select([rib == 0, rib == 3], [-0.4, -0.15], 0.12) + 0.05 * _noise(40))
    return np.where(spine[..., None], np.array([222.0, 222.0, 170.0]), body)


def _pumpkin(face: bool) -> Image:
    image = _paint((214, 124, 28), np.where(_U % 5 == 0, -0.34, 0.08) + 0.05 * _noise(41))
    if face:
        hole = ((_V // 3 == 1) & ((_U // 3 == 1) | (_U // 3 == 3))) | ((_V // 2 == 5) & (_U > 2) & (_U < 13))
        image[hole] = (62, 32, 12)
    return image


def _bookshelf() -> Image:
    palette = np.array(
        [(150, 44, 36), (44, 84, 140), (60, 112, 52), (158, 120, 40), (104, 60, 120), (196, 180, 150)], np.float64
    )
    book = hash2(_U // 2, _V // 8, 77).astype(np.int64) % 6
    shelf = (_V % 8 == 0) | (_V % 8 == 7)
    tall = (_V % 8) > (hash2(_U // 2, _V // 8, 78) % np.uint32(3)).astype(np.int64)
    inside = np.where(
        tall[..., None], palette[book] * np.where(_U % 2 == 0, 1.0, 0.8)[..., None], np.array([40.0, 28, 16])
    )
    return np.where(shelf[..., None], _planks((160, 128, 78), 17), inside)


def _hay(side: bool) -> Image:
    level = 0.16 * _noise(50, 1, 6) if side else 0.16 * _noise(51, 2, 2)
    image = _paint((206, 172, 44), level)
    if side:
        image[(_V == 4) | (_V == 11)] = (150, 52, 28)
    return image


def _melon(side: bool) -> Image:
    stripe = (_U // 2) % 2 == 0 if side else (_U // 2 + _V // 2) % 2 == 0
    return _paint((98, 146, 34), np.where(stripe, 0.16, -0.28) + 0.05 * _noise(52))


def _obsidian() -> Image:
    return _paint((34, 26, 54), 0.4 * _noise(53, 3, 2) + 0.2 * _noise(54))


def _gem(colour: Colour, seed: int) -> Image:
    shine = (_U + _V) % 8 < 2
    image = _framed(colour, tuple(int(c * 0.62) for c in colour), seed, 0.1)  # type: ignore[arg-type]
    inner = shine & (_U > 1) & (_V > 1) & (_U < 15) & (_V < 15)
    return np.where(inner[..., None], np.minimum(image * 1.25, 255.0), image)


def _tiles(light: Colour, dark: Colour) -> Image:
    checker = (_U // 8 + _V // 8) % 2 == 0
    joint = (_U % 8 == 7) | (_V % 8 == 7)
    image = np.where(checker[..., None], _paint(light, 0.05 * _noise(56)), _paint(dark, 0.06 * _noise(57)))
    return np.where(joint[..., None], image * 0.66, image)


_WOOL: dict[str, Colour] = {
    "white": (228, 230, 232), "orange": (238, 126, 24), "magenta": (204, 66, 192), "sky": (86, 172, 226),
    "yellow": (250, 208, 44), "lime": (124, 200, 30), "pink": (242, 148, 178), "gray": (82, 86, 92),
    "cyan": (22, 148, 154), "purple": (130, 44, 178), "blue": (52, 62, 164), "brown": (116, 72, 40),
    "green": (84, 112, 26), "red": (180, 36, 34), "black": (28, 28, 34),
}  # fmt: skip

_WOOD: dict[str, tuple[Colour, Colour]] = {
    "oak": ((170, 136, 82), (108, 84, 50)),
    "spruce": ((122, 88, 50), (62, 42, 24)),
    "birch": ((208, 190, 130), (216, 214, 204)),
    "acacia": ((184, 100, 54), (110, 102, 92)),
}

_LEAVES: dict[str, Colour] = {
    "oak": (70, 122, 38), "spruce": (46, 86, 58), "birch": (118, 150, 64), "acacia": (136, 146, 40),
    "autumn": (204, 108, 30), "cherry": (238, 164, 196),
}  # fmt: skip


def _makers() -> dict[str, Callable[[], Image]]:
    dirt = lambda: _speckle((132, 96, 66), 10, 0.14, 0.12)  # noqa: E731
    grass = lambda: _speckle((104, 158, 60), 12, 0.16, 0.12)  # noqa: E731
    savanna = lambda: _speckle((176, 168, 74), 14, 0.15, 0.12)  # noqa: E731
    snow = lambda: _speckle((236, 244, 250), 16, 0.03, 0.05)  # noqa: E731
    table: dict[str, Callable[[], Image]] = {
        "dirt": dirt,
        "grass_top": grass,
        "grass_side": lambda: _capped(grass(), dirt(), 1),
        "savanna_top": savanna,
        "savanna_side": lambda: _capped(savanna(), dirt(), 2),
        "snow": snow,
        "snowy_side": lambda: _capped(snow(), dirt(), 3, 6),
        "flower_top": _flowers,
        "path_top": lambda: _cobble((176, 150, 100), 81),
        "path_side": lambda: _capped(_speckle((176, 150, 100), 80, 0.1, 0.1), dirt(), 5, 3),
        "stone": lambda: _stone(1),
        "coal_ore": lambda: _ore((36, 36, 38), 61),
        "sand": lambda: _ripples((222, 206, 150), 18, 0.13),
        "red_sand": lambda: _ripples((196, 108, 44), 19, 0.15),
        "sandstone": lambda: _layered((220, 202, 146), 20),
        "sandstone_top": lambda: _speckle((224, 208, 156), 21, 0.04, 0.05),
        "red_sandstone": lambda: _layered((186, 98, 38), 22),
        "red_sandstone_top": lambda: _speckle((190, 104, 44), 23, 0.05, 0.06),
        "water": lambda: _ripples((48, 96, 196), 24, 0.2),
        "ice": lambda: _paint((152, 192, 244), np.where((_U * 2 + _V) % 13 < 2, 0.22, 0.05 * _noise(25, 4, 4))),
        "packed_ice": lambda: _paint((124, 166, 232), np.where((_U - 2 * _V) % 9 < 2, -0.2, 0.06 * _noise(26, 4, 4))),
        "gravel": lambda: _paint((134, 128, 126), 0.3 * _noise(27, 2, 2) + 0.08 * _noise(28)),
        "cobblestone": lambda: _cobble((132, 132, 132), 29),
        "mossy_cobblestone": lambda: _cobble((132, 132, 132), 29, moss=True),
        "stone_bricks": lambda: _bricks((134, 134, 136), (70, 70, 74), 32, 8, 8),
        "bricks": lambda: _bricks((160, 82, 66), (198, 188, 178), 33),
        "mud_bricks": lambda: _bricks((146, 112, 84), (88, 64, 48), 34),
        "nether_bricks": lambda: _bricks((62, 30, 36), (24, 10, 14), 35),
        "prismarine": lambda: _cobble((98, 172, 158), 36),
        "dark_prismarine": lambda: _bricks((48, 98, 84), (26, 54, 48), 37, 4, 4),
        "purpur": lambda: _bricks((172, 124, 172), (116, 76, 118), 38, 8, 8),
        "cactus_side": _cactus,
        "cactus_top": lambda: _framed((88, 154, 62), (44, 96, 36), 39, 0.15),
        "glass": _glass,
        "terracotta": lambda: _layered((160, 90, 64), 42),
        "quartz": lambda: _paint((236, 230, 222), np.where((_U == 0) | (_U == 15), -0.22, 0.02 * _noise(43, 4, 16))),
        "quartz_top": lambda: _framed((236, 230, 222), (196, 188, 178), 44, 0.02),
        "obsidian": _obsidian,
        "gold": lambda: _gem((250, 208, 56), 45),
        "diamond": lambda: _gem((100, 224, 216), 46),
        "emerald": lambda: _gem((46, 196, 84), 47),
        "lapis": lambda: _gem((34, 70, 170), 48),
        "copper": lambda: _tiles((196, 112, 80), (170, 94, 68)),
        "tiles": lambda: _tiles((206, 204, 198), (96, 100, 108)),
        "hay_top": lambda: _hay(False),
        "hay_side": lambda: _hay(True),
        "pumpkin_top": lambda: _pumpkin(False),
        "pumpkin_side": lambda: _pumpkin(True),
        "melon_top": lambda: _melon(False),
        "melon_side": lambda: _melon(True),
        "bookshelf": _bookshelf,
        "glowstone": lambda: _cobble((246, 204, 120), 58),
        "bedrock": lambda: _paint((86, 84, 90), 0.42 * _noise(59, 3, 3) + 0.14 * _noise(60)),
    }
    for name, colour in _WOOL.items():
        table[f"{name}_wool"] = lambda colour=colour, name=name: _wool(colour, 60 + len(name))  # type: ignore[misc]
    for index, (name, (wood, bark)) in enumerate(_WOOD.items()):
        table[f"{name}_planks"] = lambda wood=wood, index=index: _planks(wood, 90 + index)  # type: ignore[misc]
        table[f"{name}_rings"] = lambda wood=wood, bark=bark: _rings(wood, bark)  # type: ignore[misc]
        table[f"{name}_bark"] = lambda bark=bark, index=index: _bark(bark, 94 + index)  # type: ignore[misc]
    table["birch_bark"] = lambda: _birch_bark(98)
    for index, (name, colour) in enumerate(_LEAVES.items()):
        table[f"{name}_leaves"] = lambda colour=colour, index=index: _leaves(colour, 100 + 3 * index)  # type: ignore[misc]
    return table


# Textures that the renderer may mirror from block to block, with a stronger tint each: loose, natural material.
NATURAL = (
    "grass",
    "dirt",
    "sand",
    "savanna",
    "snow",
    "leaves",
    "gravel",
    "stone",
    "water",
    "red_sand",
    "flower",
    "coal",
)


@lru_cache(maxsize=1)
def texture_table() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All textures with their mips, and the texture of every face.

    Returns:
        `texels` int32 [textures, 341], packed 0xRRGGBB, mips of side 16, 8, 4, 2, 1 one after the other; and `faces`
        int32 [256, 3], for the top, the sides and the bottom by block id: texture * 2 + (1 if natural).
    """
    names, table = face_textures()
    makers = _makers()
    packed = np.zeros((len(names), TEXELS), np.int32)
    natural = np.zeros(len(names), np.int32)
    for index, name in enumerate(names):
        image = np.floor(np.clip(makers[name](), 0.0, 255.0) + 0.5)
        natural[index] = name.startswith(NATURAL) or name.endswith("leaves")
        if name.startswith(("stone_bricks", "sandstone")):
            natural[index] = 0
        levels = []
        while True:
            rgb = np.floor(image + 0.5).astype(np.int32)
            levels.append(((rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]).reshape(-1))
            if len(image) == 1:
                break
            image = (image[0::2, 0::2] + image[0::2, 1::2] + image[1::2, 0::2] + image[1::2, 1::2]) * 0.25
        packed[index] = np.concatenate(levels)
    return packed, table * 2 + natural[table]


@lru_cache(maxsize=1)
def cloud_map() -> NDArray[np.int32]:
    """Where clouds are, int32 [64, 64] of 0 or 1; one cell is 10 blocks wide, the map repeats after 640."""
    side = np.arange(64)
    total = np.zeros((64, 64))
    for period, weight, seed in ((8, 0.6, 901), (4, 0.4, 902)):
        cells = 64 // period
        lattice = hash2(np.arange(cells)[:, None], np.arange(cells)[None, :], seed).astype(np.float64) / 4294967296.0
        cell, t = side // period, (side % period) / float(period)
        following = (cell + 1) % cells
        rows = lattice[cell] * (1 - t)[:, None] + lattice[following] * t[:, None]
        total += weight * (rows[:, cell] * (1 - t)[None, :] + rows[:, following] * t[None, :])
    return (total > 0.56).astype(np.int32)
