"""Block types: ids, names, and which texture each face shows.

Ids are stored in worlds and in edits, so they never change within one `worlds.VERSION`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AIR = 0
WATER = 6

# (name, texture of the top, of the sides, of the bottom); the position in the list is the block id.
_TYPES: tuple[tuple[str, str, str, str], ...] = (
    ("air", "dirt", "dirt", "dirt"),
    ("grass", "grass_top", "grass_side", "dirt"),
    ("dirt", "dirt", "dirt", "dirt"),
    ("stone", "stone", "stone", "stone"),
    ("sand", "sand", "sand", "sand"),
    ("sandstone", "sandstone_top", "sandstone", "sandstone_top"),
    ("water", "water", "water", "water"),
    ("snow", "snow", "snow", "snow"),
    ("snowy_grass", "snow", "snowy_side", "dirt"),
    ("ice", "ice", "ice", "ice"),
    ("packed_ice", "packed_ice", "packed_ice", "packed_ice"),
    ("savanna_grass", "savanna_top", "savanna_side", "dirt"),
    ("gravel", "gravel", "gravel", "gravel"),
    ("cobblestone", "cobblestone", "cobblestone", "cobblestone"),
    ("mossy_cobblestone", "mossy_cobblestone", "mossy_cobblestone", "mossy_cobblestone"),
    ("stone_bricks", "stone_bricks", "stone_bricks", "stone_bricks"),
    ("bricks", "bricks", "bricks", "bricks"),
    ("oak_planks", "oak_planks", "oak_planks", "oak_planks"),
    ("spruce_planks", "spruce_planks", "spruce_planks", "spruce_planks"),
    ("birch_planks", "birch_planks", "birch_planks", "birch_planks"),
    ("acacia_planks", "acacia_planks", "acacia_planks", "acacia_planks"),
    ("oak_log", "oak_rings", "oak_bark", "oak_rings"),
    ("spruce_log", "spruce_rings", "spruce_bark", "spruce_rings"),
    ("birch_log", "birch_rings", "birch_bark", "birch_rings"),
    ("acacia_log", "acacia_rings", "acacia_bark", "acacia_rings"),
    ("oak_leaves", "oak_leaves", "oak_leaves", "oak_leaves"),
    ("spruce_leaves", "spruce_leaves", "spruce_leaves", "spruce_leaves"),
    ("birch_leaves", "birch_leaves", "birch_leaves", "birch_leaves"),
    ("acacia_leaves", "acacia_leaves", "acacia_leaves", "acacia_leaves"),
    ("cactus", "cactus_top", "cactus_side", "cactus_top"),
    ("glass", "glass", "glass", "glass"),
    ("red_sand", "red_sand", "red_sand", "red_sand"),
    ("terracotta", "terracotta", "terracotta", "terracotta"),
    ("white_wool", "white_wool", "white_wool", "white_wool"),
    ("orange_wool", "orange_wool", "orange_wool", "orange_wool"),
    ("magenta_wool", "magenta_wool", "magenta_wool", "magenta_wool"),
    ("sky_wool", "sky_wool", "sky_wool", "sky_wool"),
    ("yellow_wool", "yellow_wool", "yellow_wool", "yellow_wool"),
    ("lime_wool", "lime_wool", "lime_wool", "lime_wool"),
    ("pink_wool", "pink_wool", "pink_wool", "pink_wool"),
    ("gray_wool", "gray_wool", "gray_wool", "gray_wool"),
    ("cyan_wool", "cyan_wool", "cyan_wool", "cyan_wool"),
    ("purple_wool", "purple_wool", "purple_wool", "purple_wool"),
    ("blue_wool", "blue_wool", "blue_wool", "blue_wool"),
    ("brown_wool", "brown_wool", "brown_wool", "brown_wool"),
    ("green_wool", "green_wool", "green_wool", "green_wool"),
    ("red_wool", "red_wool", "red_wool", "red_wool"),
    ("black_wool", "black_wool", "black_wool", "black_wool"),
    ("quartz", "quartz_top", "quartz", "quartz_top"),
    ("obsidian", "obsidian", "obsidian", "obsidian"),
    ("gold", "gold", "gold", "gold"),
    ("diamond", "diamond", "diamond", "diamond"),
    ("emerald", "emerald", "emerald", "emerald"),
    ("lapis", "lapis", "lapis", "lapis"),
    ("hay", "hay_top", "hay_side", "hay_top"),
    ("pumpkin", "pumpkin_top", "pumpkin_side", "pumpkin_top"),
    ("melon", "melon_top", "melon_side", "melon_top"),
    ("bookshelf", "oak_planks", "bookshelf", "oak_planks"),
    ("glowstone", "glowstone", "glowstone", "glowstone"),
    ("prismarine", "prismarine", "prismarine", "prismarine"),
    ("purpur", "purpur", "purpur", "purpur"),
    ("nether_bricks", "nether_bricks", "nether_bricks", "nether_bricks"),
    ("autumn_leaves", "autumn_leaves", "autumn_leaves", "autumn_leaves"),
    ("cherry_leaves", "cherry_leaves", "cherry_leaves", "cherry_leaves"),
    ("flower_grass", "flower_top", "grass_side", "dirt"),
    ("path", "path_top", "path_side", "dirt"),
    ("bedrock", "bedrock", "bedrock", "bedrock"),
    ("andesite_tiles", "tiles", "tiles", "tiles"),
    ("red_sandstone", "red_sandstone_top", "red_sandstone", "red_sandstone_top"),
    ("mud_bricks", "mud_bricks", "mud_bricks", "mud_bricks"),
    ("copper", "copper", "copper", "copper"),
    ("coal_ore", "coal_ore", "coal_ore", "coal_ore"),
    ("dark_prismarine", "dark_prismarine", "dark_prismarine", "dark_prismarine"),
)

BLOCK_NAMES: tuple[str, ...] = tuple(row[0] for row in _TYPES)
BLOCK_COUNT = len(BLOCK_NAMES)
_BY_NAME = {name: index for index, name in enumerate(BLOCK_NAMES)}

PLACED_BLOCK = _BY_NAME["magenta_wool"]  # what PLACE puts: a colour that landmarks use rarely
BEDROCK = _BY_NAME["bedrock"]


def block(name: str) -> int:
    """Id of a block type.

    Raises:
        KeyError: Unknown name.
    """
    return _BY_NAME[name]


def face_textures() -> tuple[list[str], NDArray[np.int32]]:
    """Textures in use and the texture of every block's faces.

    Returns:
        Texture names, and int32 [256, 3]: texture of the top, the sides and the bottom by block id (0 for unused ids).
    """
    names = list(dict.fromkeys(texture for _, *faces in _TYPES for texture in faces))
    table = np.zeros((256, 3), np.int32)
    for index, (_, *faces) in enumerate(_TYPES):
        table[index] = [names.index(texture) for texture in faces]
    return names, table


def solid_table() -> NDArray[np.bool_]:
    """Whether a block id stops a player, bool [256]: everything but air and water."""
    table = np.ones(256, bool)
    table[[AIR, WATER]] = False
    return table
