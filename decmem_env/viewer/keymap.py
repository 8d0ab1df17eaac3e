"""Keys: what is held walks and turns, what is pressed once commands the window."""

from __future__ import annotations

import threading

import numpy as np
import pygame
from numpy.typing import NDArray

from ..conventions.actions import CAMERA_STEP_DEGREES, Action, noop

# key -> (entry, value); keys held together add up, opposite ones cancel.
MOVES: dict[int, tuple[Action, float]] = {
    pygame.K_w: (Action.FORWARD, 1.0),
    pygame.K_s: (Action.BACK, 1.0),
    pygame.K_a: (Action.LEFT, 1.0),
    pygame.K_d: (Action.RIGHT, 1.0),
    pygame.K_LEFT: (Action.CAMERA_YAW, -1.0),
    pygame.K_RIGHT: (Action.CAMERA_YAW, 1.0),
    pygame.K_UP: (Action.CAMERA_PITCH, -1.0),
    pygame.K_DOWN: (Action.CAMERA_PITCH, 1.0),
    pygame.K_SPACE: (Action.JUMP, 1.0),
    pygame.K_p: (Action.PLACE, 1.0),
    pygame.K_b: (Action.ATTACK, 1.0),
}
MOUSE_BUTTONS: dict[int, tuple[Action, float]] = {1: (Action.ATTACK, 1.0), 3: (Action.PLACE, 1.0)}
# One press, one block: held for a second these would place ten.
_ONCE = (Action.ATTACK, Action.PLACE)

COMMANDS: dict[int, str] = {
    pygame.K_RETURN: "pause",
    pygame.K_KP_ENTER: "pause",
    pygame.K_PERIOD: "single step",
    pygame.K_r: "reset",
    pygame.K_n: "new world",
    pygame.K_F5: "save",
    pygame.K_F8: "load",
    pygame.K_F9: "record",
    pygame.K_F11: "fullscreen",
    pygame.K_F12: "screenshot",
    pygame.K_t: "truth",
    pygame.K_g: "minimap",
    pygame.K_v: "memory",
    pygame.K_k: "bookmark",
    pygame.K_j: "compare",
    pygame.K_m: "mouse",
    pygame.K_i: "smooth",
    pygame.K_TAB: "hud",
    pygame.K_h: "help",
    pygame.K_F1: "help",
    pygame.K_ESCAPE: "back",
}

# What the help shows, and the README's table.
HELP: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Move",
        (
            ("W A S D", "walk and strafe"),
            ("arrows", "look, 15 degrees a step"),
            ("M", "mouse look on or off"),
            ("Space", "jump"),
            ("B / left button", "break the block ahead"),
            ("P / right button", "place a block"),
        ),
    ),
    (
        "Time",
        (
            ("Enter", "pause, go on"),
            (". (dot)", "one single step"),
            ("R", "this world from its start"),
            ("N", "new world"),
            ("F5 / F8", "save / load"),
            ("F9", "record"),
        ),
    ),
    (
        "See",
        (
            ("T", "true world beside the dream"),
            ("V", "memory: the frames retrieved"),
            ("G", "map"),
            ("K / J", "bookmark / compare with it"),
            ("Tab", "figures"),
            ("I", "sharp or smooth pixels"),
        ),
    ),
    (
        "Window",
        (
            ("H / F1", "this help"),
            ("F11 / F12", "full screen / screenshot"),
            ("Esc", "close, free the mouse, quit"),
        ),
    ),
)

MOUSE_DEGREES_PER_PIXEL = 0.12
# A frame turns by one trained camera step at most; a flick is worked off over the next frames, three at most.
_MOUSE_STEPS_PER_FRAME, _MOUSE_BACKLOG_STEPS = 1.0, 3.0


class ActionMailbox:
    """The latest wish of the player, filled by the window and emptied by the engine, from any thread.

    A key counts while it is held; one that was pressed and let go between two frames still counts once. Mouse
    movement adds up until it is used.
    """

    def __init__(self) -> None:
        """Empty."""
        self._lock = threading.Lock()
        self._held: dict[object, tuple[Action, float]] = {}
        self._tapped: dict[object, tuple[Action, float]] = {}
        self._mouse = np.zeros(2)  # (pitch, yaw) in camera steps

    def press(self, key: object, move: tuple[Action, float]) -> None:
        """A key or button went down."""
        with self._lock:
            self._tapped[key] = move
            if move[0] not in _ONCE:
                self._held[key] = move

    def release(self, key: object) -> None:
        """A key or button came up; unknown ones are ignored."""
        with self._lock:
            self._held.pop(key, None)

    def release_all(self) -> None:
        """Let go of everything (the window lost the keyboard, or the world changed)."""
        with self._lock:
            self._held.clear()
            self._tapped.clear()
            self._mouse[:] = 0.0

    def look(self, dx: float, dy: float) -> None:
        """Add mouse movement in pixels (right and down positive)."""
        steps = np.array([dy, dx]) * (MOUSE_DEGREES_PER_PIXEL / CAMERA_STEP_DEGREES)
        with self._lock:
            self._mouse = np.clip(self._mouse + steps, -_MOUSE_BACKLOG_STEPS, _MOUSE_BACKLOG_STEPS)

    @property
    def wants(self) -> bool:
        """Whether there is anything to do."""
        with self._lock:
            return bool(self._held or self._tapped or np.abs(self._mouse).max() > 1e-3)

    def peek(self) -> NDArray[np.float32]:
        """The action that `take` would return, without taking it: float32 [25]."""
        with self._lock:
            return self._vector()[0]

    def take(self) -> NDArray[np.float32]:
        """The action of the next frame, float32 [25]; taps and used mouse movement are gone afterwards."""
        with self._lock:
            vector, used = self._vector()
            self._tapped.clear()
            self._mouse -= used
            return vector

    def _vector(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        vector = noop()
        for entry, value in {**self._held, **self._tapped}.values():
            vector[entry] += value
        used = np.clip(self._mouse, -_MOUSE_STEPS_PER_FRAME, _MOUSE_STEPS_PER_FRAME)
        camera = [Action.CAMERA_PITCH, Action.CAMERA_YAW]
        vector[camera] = np.clip(vector[camera] + used, -_MOUSE_STEPS_PER_FRAME, _MOUSE_STEPS_PER_FRAME)
        keys = np.ones(len(vector), bool)
        keys[camera] = False
        vector[keys] = np.clip(vector[keys], 0.0, 1.0)
        for one, other in ((Action.FORWARD, Action.BACK), (Action.LEFT, Action.RIGHT)):
            if vector[one] and vector[other]:
                vector[[one, other]] = 0.0
        return vector, used
