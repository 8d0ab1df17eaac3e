"""The picture itself: alone, beside the truth, or beside a bookmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pygame
from numpy.typing import NDArray

from ..conventions.poses import is_exact, pose_difference
from .source import Shot
from .theme import ACCENT, MARK, MEMORY, MUTED, TEXT, Colour, Theme, fit, surface


@dataclass(frozen=True, eq=False)
class Bookmark:
    """A view to come back to: pose float64 [5], frame uint8 [H, W, 3], index in the session."""

    pose: NDArray[np.float64]
    frame: NDArray[np.uint8]
    index: int


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two frames in dB, 100 for equal ones."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 100.0 if error == 0 else min(100.0, 10.0 * float(np.log10(255.0**2 / error)))


def nearest_bookmark(pose: NDArray[np.float64], bookmarks: list[Bookmark]) -> int:
    """Index of the bookmark whose view is closest (a block counts as much as ten degrees)."""
    distance, angle = pose_difference(pose, np.stack([mark.pose for mark in bookmarks]))
    return int(np.argmin(distance + angle / 10.0))


class PictureView:
    """Draws frames into an area, enlarged sharply or smoothly."""

    def __init__(self) -> None:
        """Sharp pixels."""
        self.smooth = False

    def single(self, target: pygame.Surface, area: pygame.Rect, shot: Shot) -> pygame.Rect:
        """The frame alone; returns where it is."""
        return self._place(target, area, shot.frame)

    def split(self, target: pygame.Surface, theme: Theme, area: pygame.Rect, shot: Shot, title: str) -> None:
        """The dream large, the truth and their difference beside it."""
        height, width = shot.frame.shape[:2]
        whole = fit((3 * width, 2 * height), area)
        gap = theme.px(3)
        large = pygame.Rect(whole.x, whole.y, whole.width * 2 // 3, whole.height)
        right = pygame.Rect(large.right + gap, whole.y, whole.right - large.right - gap, whole.height // 2)
        placed = self._place(target, large, shot.frame)
        truth_area = pygame.Rect(right.x, right.y, right.width, right.height - gap // 2)
        lower = pygame.Rect(right.x, right.y + right.height + gap // 2, right.width, right.height - gap // 2)
        if shot.truth is None:
            theme.text(target, "the truth comes with the next frame", truth_area.center, theme.small, MUTED, "center")
            return
        self._place(target, truth_area, shot.truth)
        gap_picture = np.abs(shot.frame.astype(np.int16) - shot.truth.astype(np.int16))
        self._place(target, lower, np.minimum(2 * gap_picture, 255).astype(np.uint8))
        inset = theme.px(8)
        theme.chip(target, "truth", (truth_area.x + inset, truth_area.y + inset), TEXT)
        theme.chip(
            target, f"difference x2   {psnr(shot.frame, shot.truth):.1f} dB", (lower.x + inset, lower.y + inset), MEMORY
        )
        theme.chip(target, title, (placed.right - inset, placed.y + inset), ACCENT, "topright")

    def compare(
        self, target: pygame.Surface, theme: Theme, area: pygame.Rect, shot: Shot, bookmarks: list[Bookmark]
    ) -> None:
        """Now and the nearest bookmark side by side, with the PSNR between them."""
        number = nearest_bookmark(shot.pose, bookmarks)
        mark = bookmarks[number]
        height, width = shot.frame.shape[:2]
        room = area.inflate(0, -theme.px(64))  # for the labels above and below
        whole = fit((2 * width, height), room)
        gap = theme.px(2)
        left = pygame.Rect(whole.x, whole.y, whole.width // 2 - gap, whole.height)
        right = pygame.Rect(whole.centerx + gap, whole.y, whole.width // 2 - gap, whole.height)
        now = self._place(target, left, shot.frame)
        then = self._place(target, right, mark.frame)
        distance, angle = pose_difference(shot.pose, mark.pose)
        same = bool(is_exact(shot.pose, mark.pose))
        where = "the same view" if same else f"{float(distance):.1f} blocks and {float(angle):.0f}° away"
        colour: Colour = ACCENT if same else MUTED
        inset = theme.px(8)
        theme.chip(target, f"now, frame {shot.index}", (now.x + inset, now.y + inset), TEXT)
        title = f"bookmark {number + 1}, frame {mark.index}"
        theme.chip(target, title, (then.x + inset, then.y + inset), MARK)
        middle = (whole.centerx, now.bottom + theme.px(10))
        theme.chip(target, f"{psnr(shot.frame, mark.frame):.1f} dB   {where}", middle, colour, "midtop")

    def _place(self, target: pygame.Surface, area: pygame.Rect, frame: NDArray[np.uint8]) -> pygame.Rect:
        image = surface(frame)
        rect = fit(image.get_size(), area)
        scale = pygame.transform.smoothscale if self.smooth else pygame.transform.scale
        target.blit(scale(image, rect.size), rect)
        return rect
