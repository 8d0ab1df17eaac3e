"""A map drawn from poses alone: the way, the heading, what is remembered and what of it is being looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pygame
from numpy.typing import NDArray

from .source import Shot
from .theme import ACCENT, EDGE, MARK, MEMORY, MUTED, Theme

_DOTS = 500  # memory dots drawn at most
_SMALLEST, _LARGEST = 6.0, 64.0  # blocks from the middle to the edge
_STEPS = (1, 2, 4, 8, 16, 32)
_HALF_VIEW = 49.4  # half of the horizontal view in degrees at 5:3 and 70 degrees vertical


def map_radius(poses: NDArray[np.float64], centre: NDArray[np.float64]) -> float:
    """Blocks from the middle to the edge so that the way fits, within limits.

    Args:
        poses: float64 [T, 5].
        centre: float64 [5], the middle.

    Returns:
        6 to 64 blocks.
    """
    if not len(poses):
        return _SMALLEST
    reach = float(np.abs(poses[:, [0, 2]] - centre[[0, 2]]).max())
    return float(np.clip(reach * 1.15, _SMALLEST, _LARGEST))


def draw_minimap(
    target: pygame.Surface,
    theme: Theme,
    rect: pygame.Rect,
    shot: Shot,
    poses: NDArray[np.float64],
    bookmarks: Sequence[NDArray[np.float64]],
) -> None:
    """Draw the map, north up, the player in the middle.

    Args:
        target: Where to.
        theme: Fonts and colours.
        rect: Square on the target.
        shot: The present frame.
        poses: float64 [T, 5], pose of every frame so far.
        bookmarks: Poses [5].
    """
    theme.panel(target, rect)
    inner = rect.inflate(-theme.px(16), -theme.px(16))
    sheet = pygame.Surface(inner.size, pygame.SRCALPHA)
    middle = np.array(inner.size) / 2.0
    radius = map_radius(poses, shot.pose)
    zoom = middle[0] / radius

    def at(pose: NDArray[np.float64]) -> NDArray[np.float64]:
        return middle + (pose[..., [0, 2]] - shot.pose[[0, 2]]) * zoom

    ring = next((step for step in _STEPS if step >= radius / 2.5), _STEPS[-1])
    pygame.draw.circle(sheet, EDGE, middle, ring * zoom, 1)
    if len(poses) > 1:
        pygame.draw.aalines(sheet, (*MUTED, 255), False, at(poses).tolist())
    every = max(1, -(-len(poses) // _DOTS))
    for x, y in at(poses[::every]):
        pygame.draw.circle(sheet, (*MUTED, 150), (x, y), theme.px(1.6))
    _draw_retrieved(sheet, theme, shot, poses, at)
    for number, pose in enumerate(bookmarks, 1):
        x, y = at(pose)
        size = theme.px(5)
        pygame.draw.polygon(sheet, MARK, [(x, y - size), (x + size, y), (x, y + size), (x - size, y)])
        theme.text(sheet, str(number), (x + size + 1, y), theme.small, MARK, "midleft")
    _wedge(sheet, middle, shot.pose[4], theme.px(34), (*ACCENT, 60))
    pygame.draw.circle(sheet, ACCENT, middle, theme.px(4))
    target.blit(sheet, inner)
    theme.text(target, "N", (inner.centerx, inner.top - theme.px(3)), theme.small, MUTED, "midtop")
    theme.text(target, f"ring {ring} blocks", inner.bottomright, theme.small, MUTED, "bottomright")


def _draw_retrieved(
    sheet: pygame.Surface,
    theme: Theme,
    shot: Shot,
    poses: NDArray[np.float64],
    at: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    """Light up what is being looked up, with the direction it was seen in; the strongest last."""
    known = shot.retrieved < len(poses)
    shares = shot.shares[known]
    strongest = max(float(shares.max(initial=0.0)), 1e-9)
    for index, share in sorted(zip(shot.retrieved[known], shares, strict=True), key=lambda pair: pair[1]):
        pose, strength = poses[index], float(share) / strongest
        point = at(pose)
        _wedge(sheet, point, pose[4], theme.px(9), (*MEMORY, round(40 + 80 * strength)))
        pygame.draw.circle(sheet, (*MEMORY, round(110 + 145 * strength)), point, theme.px(1.8 + 1.6 * strength))


def _wedge(sheet: pygame.Surface, point: NDArray[np.float64], yaw: float, length: int, colour: tuple[int, ...]) -> None:
    angles = np.radians(yaw + np.linspace(-_HALF_VIEW, _HALF_VIEW, 9))
    rim = point + length * np.stack([-np.sin(angles), np.cos(angles)], -1)
    layer = pygame.Surface((2 * length + 2, 2 * length + 2), pygame.SRCALPHA)
    corner = point - (length + 1)
    pygame.draw.polygon(layer, colour, [(point - corner).tolist(), *(rim - corner).tolist()])
    sheet.blit(layer, corner.round().astype(int).tolist())
