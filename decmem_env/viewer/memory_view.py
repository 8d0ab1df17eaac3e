"""The memory strip: pictures of the frames whose blocks were retrieved for the frame on show."""

from __future__ import annotations

import pygame

from ..conventions.poses import pose_difference
from .history import History
from .source import Shot
from .theme import MEMORY, MUTED, TEXT, Theme, fit, surface


def strip_height(theme: Theme) -> int:
    """Height of the strip in window pixels."""
    return theme.px(112)


def draw_memory_strip(target: pygame.Surface, theme: Theme, rect: pygame.Rect, shot: Shot, history: History) -> None:
    """Draw as many of the frames that were looked up as fit, most used first, with their shares."""
    theme.panel(target, rect)
    pad = theme.px(10)
    top = rect.y + theme.px(7)
    if not len(shot.retrieved):
        why = "nothing retrieved yet" if shot.memory_frames else "this world is the truth, it has no memory to look at"
        theme.text(target, f"memory: {why}", rect.center, theme.body, MUTED, "center")
        return
    theme.text(target, "memory looked up", (rect.x + pad, top), theme.small, MEMORY)
    note = f"{len(shot.retrieved)} of {shot.memory_frames} frames; share of what was looked up"
    theme.text(target, note, (rect.right - pad, top), theme.small, MUTED, "topright")
    y = top + theme.small.get_linesize() + theme.px(2)
    height = rect.bottom - y - theme.small.get_linesize() - theme.px(11)
    tall, wide = shot.frame.shape[:2]
    width = round(height * wide / tall)
    room = (rect.width - 2 * pad + theme.px(6)) // (width + theme.px(6))
    poses = history.poses()
    strongest = float(shot.shares[0])
    for i, (index, share) in enumerate(zip(shot.retrieved[:room], shot.shares[:room], strict=True)):
        picture = history.picture(int(index))
        if picture is None:
            continue
        box = pygame.Rect(rect.x + pad + i * (width + theme.px(6)), y, width, height)
        image = surface(picture)
        target.blit(pygame.transform.smoothscale(image, fit(image.get_size(), box).size), box)
        strength = float(share) / strongest
        pygame.draw.rect(target, MEMORY, (box.x, box.bottom + 1, max(2, round(width * strength)), theme.px(2)))
        distance, _ = pose_difference(shot.pose, poses[index])
        label = f"{index}"
        theme.text(target, label, (box.x, box.bottom + theme.px(4)), theme.small, TEXT)
        detail = f"{100 * share:.0f}%  {float(distance):.0f} bl"
        theme.text(target, detail, (box.right, box.bottom + theme.px(4)), theme.small, MUTED, "topright")
