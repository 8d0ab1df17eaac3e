"""Figures and lamps over the picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pygame
from numpy.typing import NDArray

from ..conventions.actions import Action
from .engine_thread import Timing
from .source import Shot
from .theme import ACCENT, ALARM, EDGE, MEMORY, MUTED, PANEL, TEXT, Colour, Theme

# lamp -> (entry, sign, column, row) on a grid of key caps
_LAMPS: tuple[tuple[str, Action, int, float, int], ...] = (
    ("W", Action.FORWARD, 1, 1.0, 0),
    ("A", Action.LEFT, 1, 0.0, 1),
    ("S", Action.BACK, 1, 1.0, 1),
    ("D", Action.RIGHT, 1, 2.0, 1),
    ("up", Action.CAMERA_PITCH, -1, 4.5, 0),
    ("left", Action.CAMERA_YAW, -1, 3.5, 1),
    ("down", Action.CAMERA_PITCH, 1, 4.5, 1),
    ("right", Action.CAMERA_YAW, 1, 5.5, 1),
    ("jump", Action.JUMP, 1, 7.0, 1),
    ("break", Action.ATTACK, 1, 9.0, 1),
    ("place", Action.PLACE, 1, 11.0, 1),
)
_ARROWS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


@dataclass(frozen=True)
class HudFacts:
    """What does not change from frame to frame."""

    title: str
    seed: int
    pose_source: str
    paused: bool
    resting: bool
    recording_frames: int | None
    returned_after: int | None
    status: str | None


def draw_hud(
    target: pygame.Surface,
    theme: Theme,
    area: pygame.Rect,
    shot: Shot,
    timing: Timing,
    facts: HudFacts,
    beside: bool = False,
) -> int:
    """Draw the panel of figures at the top left of an area and the chips below or beside it.

    Args:
        target: Where to.
        theme: Fonts and colours.
        area: Part of the target.
        shot: The frame on show.
        timing: Speed.
        facts: The rest.
        beside: Chips to the right of the panel.

    Returns:
        Where the space to the right of the panel begins, in window pixels.
    """
    fps = "--" if timing.fps is None else f"{timing.fps:.1f}"
    x, y, z, pitch, yaw = shot.pose
    rows = [
        ("speed", f"{fps} frames/s"),
        ("step", "--" if timing.p50 is None else f"{timing.p50:.0f} ms, p99 {timing.p99:.0f}"),
        ("frame", f"{shot.index}"),
        ("memory", _memory_text(shot)),
        ("at", f"{x:.1f}  {y:.1f}  {z:.1f}"),
        ("looks", f"{compass(yaw)} {abs(yaw):.0f}°, {'down' if pitch > 0 else 'up'} {abs(pitch):.0f}°"),
        ("pose", facts.pose_source),
    ]
    pad, line = theme.px(10), theme.small.get_linesize() + theme.px(2)
    label = max(theme.small.size(name)[0] for name, _ in rows) + theme.px(10)
    heading = f"{facts.title}  ·  world {facts.seed}"
    width = max(theme.px(184), theme.body.size(heading)[0], *(label + theme.small.size(value)[0] for _, value in rows))
    rect = pygame.Rect(area.x + pad, area.y + pad, width + 2 * pad, len(rows) * line + theme.px(44))
    theme.panel(target, rect)
    theme.text(target, heading, (rect.x + pad, rect.y + theme.px(9)), theme.body, ACCENT)
    top = rect.y + theme.px(34)
    for i, (name, value) in enumerate(rows):
        theme.text(target, name, (rect.x + pad, top + i * line), theme.small, MUTED)
        theme.text(target, value, (rect.x + pad + label, top + i * line), theme.small, TEXT)
    _draw_chips(
        target, theme, (rect.right + pad, rect.top) if beside else (rect.left, rect.bottom + theme.px(6)), facts
    )
    return rect.right


def _draw_chips(target: pygame.Surface, theme: Theme, at: tuple[int, int], facts: HudFacts) -> None:
    chips: list[tuple[str, Colour]] = []
    if facts.recording_frames is not None:
        # The dot blinks once a second.
        dot = "\u25cf" if pygame.time.get_ticks() % 1000 < 600 else "\u25cb"
        chips.append((f"{dot} REC {facts.recording_frames / 10:.1f} s", ALARM))
    if facts.paused:
        chips.append(("paused: Enter goes on, . steps", MEMORY))
    elif facts.resting:
        chips.append(("time rests until you move", MUTED))
    if facts.status:
        chips.append((facts.status, ACCENT))
    if facts.returned_after is not None:
        chips.append((f"back after {facts.returned_after} frames", MEMORY))
    x, y = at
    for words, colour in chips:
        rect = theme.chip(target, words, (x, y), colour)
        y = rect.bottom + theme.px(4)


def draw_lamps(target: pygame.Surface, theme: Theme, area: pygame.Rect, action: NDArray[np.float32]) -> None:
    """Draw key caps at the bottom left of an area; those that made the frame shown are lit."""
    cap, gap = theme.px(22), theme.px(4)
    left, top = area.x + theme.px(12), area.bottom - theme.px(12) - 2 * cap - gap
    for name, entry, sign, column, row in _LAMPS:
        wide = name in ("jump", "break", "place")
        rect = pygame.Rect(left + round(column * (cap + gap)), top + row * (cap + gap), cap * 2 if wide else cap, cap)
        lit = float(action[entry]) * sign > 0
        sheet = pygame.Surface(rect.size, pygame.SRCALPHA)
        pygame.draw.rect(sheet, (*ACCENT, 235) if lit else PANEL, sheet.get_rect(), border_radius=theme.px(5))
        pygame.draw.rect(sheet, EDGE, sheet.get_rect(), width=1, border_radius=theme.px(5))
        target.blit(sheet, rect)
        ink = (10, 30, 20) if lit else MUTED
        if name in _ARROWS:
            _arrow(target, rect, _ARROWS[name], ink, theme.px(5))
        else:
            theme.text(target, name, rect.center, theme.small, ink, "center")


def _arrow(target: pygame.Surface, rect: pygame.Rect, way: tuple[int, int], ink: Colour, size: int) -> None:
    (dx, dy), (x, y) = way, rect.center
    tip = (x + dx * size, y + dy * size)
    wings = [
        (x - dx * size + dy * size, y - dy * size + dx * size),
        (x - dx * size - dy * size, y - dy * size - dx * size),
    ]
    pygame.draw.polygon(target, ink, [tip, *wings])


def _memory_text(shot: Shot) -> str:
    if not shot.memory_frames:
        return "none"
    text = f"{shot.memory_frames} frames, {size_text(shot.memory_bytes)}"
    return f"{text}, {shot.forgotten} forgotten" if shot.forgotten else text


def compass(yaw: float) -> str:
    """Heading in words; yaw 0 is south, 90 west."""
    names = ("south", "south-west", "west", "north-west", "north", "north-east", "east", "south-east")
    return names[round(yaw / 45.0) % 8]


def size_text(count: int) -> str:
    """Bytes for people."""
    if count < 1 << 20:
        return f"{count / 1024:.0f} KB"
    return f"{count / (1 << 20):.0f} MB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GB"
