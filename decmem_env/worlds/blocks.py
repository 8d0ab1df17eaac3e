"""Block types: ids, names and what they do to a player.

Ids are stored in worlds and in edits, so they never change within one `worlds.VERSION`.
"""

from __future__ import annotations

import numpy as np

# The mean colour (0 to 255) of each type; its position is the block id.
COLOURS: dict[str, tuple[int, int, int]] = {
    "air": (0, 0, 0),
    "grass": (96, 150, 56),
    "dirt": (126, 92, 62),
    "sand": (216, 200, 146),
    "stone": (128, 128, 128),
    "snow": (236, 242, 248),
    "ice": (150, 190, 240),
    "water": (48, 86, 190),
    "log": (104, 82, 50),
    "leaves": (58, 112, 36),
    "dark_leaves": (40, 84, 52),
    "cactus": (46, 128, 52),
    "sandstone": (206, 186, 126),
    "plank": (176, 138, 84),
    "brick": (152, 84, 68),
    "cobble": (118, 118, 122),
    "red": (176, 40, 36),
    "blue": (48, 62, 168),
    "yellow": (232, 196, 46),
    "white": (228, 230, 232),
    "black": (32, 32, 38),
    "orange": (232, 124, 28),
    "purple": (128, 48, 172),
    "cyan": (30, 146, 158),
    "green": (86, 124, 30),
    "pink": (232, 138, 172),
    "gold": (244, 206, 60),
    "glow": (248, 224, 150),
    "tile": (90, 140, 150),
    "marble": (224, 218, 210),
    "mud": (92, 72, 64),
    "dry_grass": (168, 160, 76),
    "acacia_log": (120, 108, 98),
    "acacia_leaves": (128, 140, 40),
    "gravel": (140, 132, 128),
    "basalt": (70, 70, 76),
    "hay": (196, 166, 40),
    "slate": (84, 92, 108),
    "copper": (196, 116, 84),
}
NAMES: tuple[str, ...] = tuple(COLOURS)
ID: dict[str, int] = {name: index for index, name in enumerate(NAMES)}

AIR = ID["air"]
WATER = ID["water"]
PLACED = ID["orange"]  # what a player places

PASSABLE = np.zeros(256, bool)  # by block id: a player moves through it
PASSABLE[[AIR, WATER]] = True
