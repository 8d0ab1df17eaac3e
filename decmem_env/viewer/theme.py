"""Colours, fonts and the few shapes everything in the window is drawn with."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pygame
from numpy.typing import NDArray

Colour = tuple[int, int, int]

BACKGROUND: Colour = (13, 16, 23)
PANEL = (13, 17, 26, 200)
EDGE = (255, 255, 255, 28)
TEXT: Colour = (232, 237, 245)
MUTED: Colour = (148, 160, 180)
ACCENT: Colour = (94, 214, 148)  # the player, what is on
MEMORY: Colour = (255, 190, 92)  # what is retrieved
MARK: Colour = (112, 190, 255)  # bookmarks
ALARM: Colour = (255, 99, 99)

_FACES = "dejavusans,notosans,liberationsans,segoeui,helveticaneue,arial"


@lru_cache(maxsize=1)
def _face() -> str | None:
    """Path of a legible system font; None means pygame's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # systems without a font index
        return pygame.font.match_font(_FACES)


class Theme:
    """Fonts at one window size, and drawing helpers.

    Args:
        scale: 1 for a window of about 960x576.
    """

    def __init__(self, scale: float) -> None:
        """Load the fonts."""
        self.scale = scale
        face = _face()
        self.small = pygame.font.Font(face, self.px(11))
        self.body = pygame.font.Font(face, self.px(13))
        self.large = pygame.font.Font(face, self.px(18))
        self.title = pygame.font.Font(face, self.px(40))

    def px(self, value: float) -> int:
        """Design pixels to window pixels, at least 1."""
        return max(1, round(value * self.scale))

    def panel(self, target: pygame.Surface, rect: pygame.Rect, fill: tuple[int, ...] = PANEL) -> None:
        """A dark translucent panel with round corners."""
        sheet = pygame.Surface(rect.size, pygame.SRCALPHA)
        area = sheet.get_rect()
        pygame.draw.rect(sheet, fill, area, border_radius=self.px(8))
        pygame.draw.rect(sheet, EDGE, area, width=1, border_radius=self.px(8))
        target.blit(sheet, rect)

    def text(
        self,
        target: pygame.Surface,
        words: str,
        at: tuple[float, float],
        font: pygame.font.Font | None = None,
        colour: Colour = TEXT,
        anchor: str = "topleft",
    ) -> pygame.Rect:
        """Write one line; `anchor` names the point of it that lies at `at`."""
        image = (font or self.body).render(words, True, colour)
        rect = image.get_rect(**{anchor: (round(at[0]), round(at[1]))})
        target.blit(image, rect)
        return rect

    def chip(
        self, target: pygame.Surface, words: str, at: tuple[float, float], colour: Colour, anchor: str = "topleft"
    ) -> pygame.Rect:
        """A small label on a panel of its own."""
        width, height = self.small.size(words)
        rect = pygame.Rect(0, 0, width + self.px(14), height + self.px(8))
        setattr(rect, anchor, (round(at[0]), round(at[1])))
        self.panel(target, rect)
        self.text(target, words, rect.center, self.small, colour, "center")
        return rect

    def wrap(self, words: str, width: int, font: pygame.font.Font) -> list[str]:
        """Break a text into lines no wider than `width`."""
        lines: list[str] = []
        for paragraph in words.splitlines() or [""]:
            line = ""
            for word in paragraph.split():
                longer = f"{line} {word}".strip()
                if line and font.size(longer)[0] > width:
                    lines.append(line)
                    longer = word
                line = longer
            lines.append(line)
        return lines


def surface(frame: NDArray[np.uint8]) -> pygame.Surface:
    """A frame uint8 [H, W, 3] as a pygame surface."""
    height, width = frame.shape[:2]
    return pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), (width, height), "RGB")


def fit(size: tuple[int, int], into: pygame.Rect) -> pygame.Rect:
    """The largest rectangle of the proportions of `size` in the middle of `into`."""
    factor = min(into.width / size[0], into.height / size[1])
    rect = pygame.Rect(0, 0, max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    rect.center = into.center
    return rect


def icon() -> pygame.Surface:
    """The window's icon: a block, half of it remembered."""
    image = pygame.Surface((64, 64), pygame.SRCALPHA)
    top, left, right = (132, 214, 120), (122, 88, 62), (94, 66, 46)
    pygame.draw.polygon(image, top, [(32, 4), (60, 18), (32, 32), (4, 18)])
    pygame.draw.polygon(image, left, [(4, 18), (32, 32), (32, 60), (4, 46)])
    pygame.draw.polygon(image, right, [(60, 18), (32, 32), (32, 60), (60, 46)])
    for points in ([(4, 18), (32, 32), (32, 40), (4, 26)], [(60, 18), (32, 32), (32, 40), (60, 26)]):
        pygame.draw.polygon(image, (88, 170, 84), points)
    pygame.draw.lines(image, MEMORY, True, [(32, 4), (60, 18), (60, 46), (32, 60), (4, 46), (4, 18)], 3)
    return image
