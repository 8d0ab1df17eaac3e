"""A plain pygame window for `render_mode="human"`; `decmem play` has the full viewer."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

_WIDTH = 640  # pixels the frame is enlarged to, at least


class Window:
    """Shows frames; opened at the first one."""

    def __init__(self, title: str, frames_per_second: int) -> None:
        self._title, self._rate = title, frames_per_second
        self._screen: Any = None
        self._clock: Any = None

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Draw a frame, uint8 [H, W, 3], and wait until it is due.

        Raises:
            DependencyNotInstalled: pygame is missing.
        """
        try:
            import pygame
        except ImportError:
            raise DependencyNotInstalled('render_mode "human" needs pygame: pip install "decmem-env[play]"') from None
        height, width = frame.shape[:2]
        scale = max(1, -(-_WIDTH // width))
        if self._screen is None:
            pygame.init()
            pygame.display.set_caption(self._title)
            self._screen = pygame.display.set_mode((width * scale, height * scale))
            self._clock = pygame.time.Clock()
        surface = pygame.surfarray.make_surface(np.ascontiguousarray(frame.transpose(1, 0, 2)))
        self._screen.blit(pygame.transform.scale(surface, (width * scale, height * scale)), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._rate)

    def close(self) -> None:
        """Close the window, if it was opened."""
        if self._screen is not None:
            import pygame

            pygame.display.quit()
            self._screen = None
