"""Whole screens and overlays: start, failure, help, the list of saves, messages."""

from __future__ import annotations

from collections.abc import Sequence

import pygame

from .engine_thread import EngineState
from .keymap import HELP
from .saves import SaveCard
from .theme import ACCENT, ALARM, BACKGROUND, MEMORY, MUTED, TEXT, Theme, fit, icon, surface


def draw_start(target: pygame.Surface, theme: Theme, state: EngineState) -> None:
    """Progress while the model loads and the world is being remembered, over what is being remembered."""
    area = target.get_rect()
    if state.picture is not None:
        image = surface(state.picture)
        cover = max(area.width / image.get_width(), area.height / image.get_height())
        size = (round(image.get_width() * cover), round(image.get_height() * cover))
        large = pygame.transform.smoothscale(image, size)
        target.blit(large, large.get_rect(center=area.center))
        veil = pygame.Surface(area.size, pygame.SRCALPHA)
        veil.fill((*BACKGROUND, 165))
        target.blit(veil, (0, 0))
    mark = pygame.transform.smoothscale(icon(), (theme.px(72), theme.px(72)))
    target.blit(mark, mark.get_rect(midbottom=(area.centerx, area.centery - theme.px(60))))
    theme.text(target, "decmem", (area.centerx, area.centery - theme.px(28)), theme.title, TEXT, "center")
    theme.text(
        target, "a world that remembers", (area.centerx, area.centery + theme.px(8)), theme.body, MUTED, "center"
    )
    bar = pygame.Rect(0, 0, min(theme.px(360), area.width - 40), theme.px(8))
    bar.center = (area.centerx, area.centery + theme.px(48))
    pygame.draw.rect(target, (40, 48, 62), bar, border_radius=bar.height)
    if state.total:
        done = bar.copy()
        done.width = max(bar.height, round(bar.width * state.done / state.total))
        pygame.draw.rect(target, ACCENT, done, border_radius=bar.height)
    else:
        # Nothing to count: a light that wanders.
        glow = pygame.Rect(0, bar.y, bar.width // 4, bar.height)
        turn = pygame.time.get_ticks() % 1600 / 800.0
        glow.x = bar.x + round((bar.width - glow.width) * (turn if turn < 1 else 2 - turn))
        pygame.draw.rect(target, ACCENT, glow, border_radius=bar.height)
    words = f"{state.text}  {state.done} of {state.total}" if state.total else state.text
    theme.text(target, words, (area.centerx, bar.bottom + theme.px(18)), theme.body, TEXT, "center")
    theme.text(target, "H shows the keys", (area.centerx, area.bottom - theme.px(20)), theme.small, MUTED, "center")


def draw_failure(target: pygame.Surface, theme: Theme, text: str) -> None:
    """What went wrong, and what can be done."""
    area = target.get_rect()
    width = min(area.width - theme.px(60), theme.px(700))
    lines = theme.wrap(text, width - theme.px(48), theme.body)[:14]
    line = theme.body.get_linesize() + theme.px(2)
    rect = pygame.Rect(0, 0, width, theme.px(108) + len(lines) * line)
    rect.center = area.center
    theme.panel(target, rect, (46, 18, 22, 235))
    x, y = rect.x + theme.px(24), rect.y + theme.px(20)
    theme.text(target, "The world stopped", (x, y), theme.large, ALARM)
    y += theme.large.get_linesize() + theme.px(10)
    for words in lines:
        theme.text(target, words, (x, y), theme.body, TEXT)
        y += line
    theme.text(target, "R tries again    Esc quits", (x, y + theme.px(12)), theme.small, MUTED)


def draw_help(target: pygame.Surface, theme: Theme) -> None:
    """All keys."""
    area = target.get_rect()
    _dim(target)
    line = theme.body.get_linesize() + theme.px(5)
    key_width = max(theme.body.size(key)[0] for _, rows in HELP for key, _ in rows) + theme.px(18)
    column = key_width + max(theme.body.size(words)[0] for _, rows in HELP for _, words in rows) + theme.px(34)
    tall = [theme.px(34) + len(rows) * line for _, rows in HELP]
    upper = max(tall[0], tall[1])
    rect = pygame.Rect(0, 0, 2 * column + theme.px(20), upper + max(tall[2:]) + theme.px(56))
    rect.center = area.center
    theme.panel(target, rect, (13, 17, 26, 240))
    for i, (heading, rows) in enumerate(HELP):
        x = rect.x + theme.px(28) + (i % 2) * column
        y = rect.y + theme.px(24) + (i // 2) * (upper + theme.px(8))
        theme.text(target, heading, (x, y), theme.large, ACCENT)
        y += theme.px(30)
        for key, words in rows:
            theme.text(target, key, (x, y), theme.body, MEMORY)
            theme.text(target, words, (x + key_width, y), theme.body, TEXT)
            y += line


def draw_saves(target: pygame.Surface, theme: Theme, cards: Sequence[SaveCard], chosen: int) -> None:
    """The list of saved states."""
    area = target.get_rect()
    _dim(target)
    row = theme.px(54)
    rect = pygame.Rect(0, 0, min(theme.px(480), area.width - 20), theme.px(76) + max(1, len(cards)) * row)
    rect.center = area.center
    theme.panel(target, rect, (13, 17, 26, 240))
    x = rect.x + theme.px(20)
    theme.text(target, "Load", (x, rect.y + theme.px(14)), theme.large, ACCENT)
    hint = (rect.right - theme.px(20), rect.y + theme.px(19))
    theme.text(target, "up and down, Enter, Esc", hint, theme.small, MUTED, "topright")
    y = rect.y + theme.px(50)
    if not cards:
        theme.text(target, "nothing saved yet: F5 saves", (x, y + theme.px(10)), theme.body, MUTED)
    for i, card in enumerate(cards):
        box = pygame.Rect(rect.x + theme.px(12), y, rect.width - theme.px(24), row - theme.px(6))
        if i == chosen:
            pygame.draw.rect(target, (38, 58, 50), box, border_radius=theme.px(6))
            pygame.draw.rect(target, ACCENT, box, width=1, border_radius=theme.px(6))
        image = surface(card.picture)
        place = pygame.Rect(box.x + theme.px(6), box.y + theme.px(4), theme.px(68), box.height - theme.px(8))
        target.blit(pygame.transform.smoothscale(image, fit(image.get_size(), place).size), place)
        x_text = place.right + theme.px(12)
        theme.text(target, f"world {card.seed}, frame {card.index}", (x_text, box.y + theme.px(6)), theme.body, TEXT)
        theme.text(target, f"{card.saved}   {card.title}", (x_text, box.y + theme.px(26)), theme.small, MUTED)
        y += row


def draw_messages(target: pygame.Surface, theme: Theme, messages: Sequence[str]) -> None:
    """Short messages at the top, the newest lowest."""
    top = theme.px(12)
    line = theme.body.get_linesize()
    for words in messages:
        lines = theme.wrap(words, target.get_width() - theme.px(440), theme.body)
        width = max(theme.body.size(part)[0] for part in lines) + theme.px(32)
        rect = pygame.Rect(0, top, width, line * len(lines) + theme.px(14))
        rect.centerx = target.get_rect().centerx
        theme.panel(target, rect, (13, 17, 26, 225))
        for i, part in enumerate(lines):
            at = (rect.centerx, rect.y + theme.px(7) + i * line)
            theme.text(target, part, at, theme.body, TEXT, "midtop")
        top = rect.bottom + theme.px(6)


def _dim(target: pygame.Surface) -> None:
    veil = pygame.Surface(target.get_size(), pygame.SRCALPHA)
    veil.fill((*BACKGROUND, 150))
    target.blit(veil, (0, 0))
