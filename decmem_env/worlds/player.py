"""How a player moves: boxes against blocks, for many players at once. `player.c` does the same, bit for bit and faster.

A player is a box 0.6 wide and 1.8 high. One tick is a tenth of a second: 0.4317 blocks of walking, half of that in
water. A block one high is stepped onto while walking; a jump rises 1.32 blocks; falls are taken in steps of a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import CAMERA_STEP_DEGREES, Action
from ..conventions.poses import MAX_PITCH, WALK_SPEED, wrap_degrees
from .blocks import PASSABLE, WATER
from .terrain import X, Y, Z

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

HALF_WIDTH = 0.3
HEIGHT = 1.8
GRAVITY = 0.22  # blocks a tick, each tick
JUMP = 0.66  # rises 0.66 + 0.44 + 0.22 = 1.32 blocks
TERMINAL = 1.5
WATER_FACTOR = 0.5
SWIM, FLOAT = 0.3, 0.04  # rising in water with and without the jump key
_SKIN = 1e-6
_FEEL = 0.02  # ground this near below the feet carries


class Grids:
    """Blocks of one or more worlds, looked up for n players at once.

    Attributes:
        blocks: uint8 [worlds, X, Z, Y].
        index: int64 [n], the world of each player.
    """

    def __init__(self, blocks: NDArray[np.uint8], index: NDArray[np.int64]) -> None:
        self.blocks, self.index = blocks, index
        self._flat = blocks.reshape(-1)

    def at(self, x: NDArray[np.int64], y: NDArray[np.int64], z: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Block ids at cells [n] or [n, k]; stone beyond the sides and below the bottom, air above the top."""
        world = self.index if x.ndim == 1 else self.index[:, None]
        inside = (x >= 0) & (x < X) & (z >= 0) & (z < Z) & (y >= 0)
        cell = (world * X + x.clip(0, X - 1)) * Z + z.clip(0, Z - 1)
        found = self._flat[cell * Y + y.clip(0, Y - 1)]
        return np.where(inside, np.where(y < Y, found, 0), 1)

    def hits(self, x: Float, y: Float, z: Float) -> Bool:
        """Whether the box of each player, feet at (x, y, z), overlaps a solid block."""
        xs = np.floor(np.stack([x - HALF_WIDTH + _SKIN, x + HALF_WIDTH - _SKIN], -1)).astype(np.int64)
        zs = np.floor(np.stack([z - HALF_WIDTH + _SKIN, z + HALF_WIDTH - _SKIN], -1)).astype(np.int64)
        ys = np.floor(np.stack([y + _SKIN, y + 0.5 * HEIGHT, y + HEIGHT - _SKIN], -1)).astype(np.int64)
        cells = (np.repeat(xs, 6, -1), np.tile(ys, (1, 4)), np.tile(np.repeat(zs, 3, -1), (1, 2)))
        return np.asarray(np.any(~PASSABLE[self.at(*cells)], axis=-1))


def turn(poses: Float, actions: Float) -> Float:
    """Poses after the camera entries: pitch clamped, yaw wrapped."""
    turned = poses.copy()
    pitch = turned[:, 3] + CAMERA_STEP_DEGREES * actions[:, Action.CAMERA_PITCH]
    turned[:, 3] = np.clip(pitch, -MAX_PITCH, MAX_PITCH)
    turned[:, 4] = wrap_degrees(turned[:, 4] + CAMERA_STEP_DEGREES * actions[:, Action.CAMERA_YAW])
    return turned


def move(grids: Grids, positions: Float, rise: Float, wish: Float, jump: Bool) -> tuple[Float, Float]:
    """Walk, step up, jump, swim and fall for one tick.

    Args:
        grids: The players' blocks.
        positions: [n, 3].
        rise: [n], vertical speed in blocks a tick.
        wish: [n, 2] of `wish`.
        jump: [n].

    Returns:
        New positions and vertical speeds.
    """
    x, y, z = positions[:, 0], positions[:, 1], positions[:, 2]
    feet = (np.floor(v).astype(np.int64) for v in (x, y + 0.4, z))
    wet = grids.at(*feet) == WATER
    dx, dz = (wish * np.where(wet, WATER_FACTOR, 1.0)[:, None]).T
    grounded = grids.hits(x, y - _FEEL, z)
    x, y = _push(grids, x, y, z, dx, 0, grounded | wet)
    z, y = _push(grids, x, y, z, dz, 2, grounded | wet)

    rise = np.where(grounded & (rise <= 0), np.where(jump, JUMP, 0.0), rise)
    rise = np.where(wet, np.where(jump, SWIM, FLOAT), rise)
    loose = ~grids.hits(x, y - _FEEL, z) | (rise > 0)
    y, speed = _fall(grids, x, y, z, np.where(loose, rise, 0.0))
    speed = np.where(loose, np.maximum(speed - GRAVITY, -TERMINAL), 0.0)
    speed = np.where(grids.hits(x, y - _FEEL, z) & (speed < 0), 0.0, speed)
    return np.stack([x, y, z], -1), speed


def wish(poses: Float, actions: Float) -> Float:
    """Walking in blocks east and south on dry land, [n, 2]; diagonals are no faster than straight lines.

    Args:
        poses: [n, 5], already turned.
        actions: [n, 25]; walking entries are fractions of full speed.
    """
    ahead = actions[:, Action.FORWARD] - actions[:, Action.BACK]
    right = actions[:, Action.RIGHT] - actions[:, Action.LEFT]
    yaw = np.radians(poses[:, 4])
    east, south = -np.sin(yaw) * ahead - np.cos(yaw) * right, np.cos(yaw) * ahead - np.sin(yaw) * right
    return np.stack([east, south], -1) * (WALK_SPEED / np.maximum(np.hypot(ahead, right), 1))[:, None]


def _push(grids: Grids, x: Float, y: Float, z: Float, delta: Float, axis: int, steady: Bool) -> tuple[Float, Float]:
    """Move along x or z; where that is blocked, step up one block if there is room. Returns the coordinate and y."""
    new_x, new_z = (x + delta, z) if axis == 0 else (x, z + delta)
    blocked = grids.hits(new_x, y, new_z)
    up = np.floor(y + _SKIN) + 1.0
    step = blocked & steady & (delta != 0)
    step &= ~grids.hits(new_x, up, new_z) & ~grids.hits(x, up, z)
    free = ~blocked | step
    old, new = (x, new_x) if axis == 0 else (z, new_z)
    return np.where(free, new, old), np.where(step, up, y)


def _fall(grids: Grids, x: Float, y: Float, z: Float, speed: Float) -> tuple[Float, Float]:
    """Move vertically, at most a block at a time; stop at floors and ceilings. Returns y and the speed left."""
    left = speed.copy()
    for _ in range(2):
        delta = np.clip(left, -1, 1)
        new = y + delta
        blocked = grids.hits(x, new, z)
        stop = np.where(delta < 0, np.floor(new) + 1.0, np.floor(new + HEIGHT) - HEIGHT - _SKIN)
        y = np.where(blocked, np.where(grids.hits(x, stop, z), y, stop), new)
        left = np.where(blocked, 0, left - delta)
        speed = np.where(blocked, 0, speed)
    return y, speed
