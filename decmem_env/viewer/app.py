"""The window: events in, the newest frame out, sixty times a second, whatever the engine is doing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pygame

from ..conventions.actions import parse_action_string
from .engine_thread import FAILED, PLAYING, EngineThread
from .hud import HudFacts, draw_hud, draw_lamps
from .keymap import COMMANDS, MOUSE_BUTTONS, MOVES, ActionMailbox
from .memory_view import draw_memory_strip, strip_height
from .minimap import draw_minimap
from .recorder import time_stamp, unused_folder
from .replay import read_recording
from .saves import SaveCard, list_saves
from .screens import draw_failure, draw_help, draw_messages, draw_saves, draw_start
from .settings import PlaySettings
from .source import PlaySource, Shot
from .theme import BACKGROUND, Theme, icon
from .views import Bookmark, PictureView

EXIT_OK, EXIT_FAILED, EXIT_DIFFERENT = 0, 1, 3
_FRAME = (160, 96)  # shape of the window until a frame says otherwise
_MESSAGE_SECONDS = 4.0
_UI_HZ, _HEADLESS_HZ = 60, 20
_REDRAW_SECONDS = {PLAYING: 0.25}  # while nothing happens: the recording dot blinks; elsewhere a bar moves
_SILENT = (pygame.MOUSEMOTION, pygame.KEYUP, pygame.MOUSEBUTTONUP)  # change nothing that is on show


class App:
    """One window on one source.

    Args:
        settings: What was asked for.
        make_source: Called on the engine's thread.
    """

    def __init__(self, settings: PlaySettings, make_source: Callable[[], PlaySource]) -> None:
        """Check script and recording; nothing is opened yet.

        Raises:
            ValueError: A bad action string, no recording where one was named, or one where none may be.
        """
        if settings.record is not None and (settings.record / "actions.jsonl").exists():
            raise ValueError(f"{settings.record} holds a recording already: name another folder")
        self.settings = settings
        self._make_source = make_source
        self._script = parse_action_string(settings.script) if settings.script else None
        self._recording = read_recording(settings.replay) if settings.replay else None
        self.mailbox = ActionMailbox()
        self.engine = self._new_engine()
        self.running = False
        self.ticks = 0
        self.view = PictureView()
        self.bookmarks: list[Bookmark] = []
        self.shows = {"hud": True, "minimap": True, "memory": False, "truth": False, "compare": False, "help": False}
        self.mouse_look = False
        self._cards: list[SaveCard] | None = None  # the list of saves, while it is open
        self._chosen = 0
        self._messages: list[tuple[float, str]] = []
        self._drawn_at = 0.0
        self._drawn_shot: Shot | None = None
        self._ended = False
        self._returned: tuple[Shot | None, int | None] = (None, None)

    def _new_engine(self) -> EngineThread:
        settings = self.settings
        return EngineThread(
            self._make_source,
            self.mailbox,
            seed=int(settings.seed or 0),
            folder=settings.folder,
            rate=None if settings.headless else settings.rate,
            turn_based=settings.turn_based,
            script=self._script,
            recording=self._recording,
            record=settings.record,
            pause_at_end=settings.headless or self._recording is not None,
        )

    # -- life --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Open, play until quit, close.

        Returns:
            0; 1 if the model failed; 3 if a replay differs from its recording.
        """
        self.open()
        clock = pygame.time.Clock()
        try:
            while self.running:
                self.tick()
                clock.tick(_HEADLESS_HZ if self.settings.headless else _UI_HZ)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()
        return self.exit_code

    def open(self) -> None:
        """Open the window and start the engine."""
        pygame.display.init()
        pygame.font.init()
        pygame.display.set_icon(icon())
        scale = self.settings.scale or _fitting_scale()
        self.window = pygame.display.set_mode((_FRAME[0] * scale, _FRAME[1] * scale), pygame.RESIZABLE)
        pygame.display.set_caption("decmem")
        self.theme = Theme(_theme_scale(self.window))
        self.running = True
        self.engine.start()

    def close(self) -> None:
        """Stop the engine (recordings are finished) and close the window."""
        self.running = False
        self.engine.stop()
        for text in self._drain():
            print(text, file=sys.stderr)
        pygame.display.quit()

    @property
    def exit_code(self) -> int:
        """What the process should return."""
        if self.engine.state.phase == FAILED:
            return EXIT_FAILED
        verdict = self.engine.verdict
        if verdict is not None and not (verdict.equal and (verdict.complete or not self.settings.headless)):
            return EXIT_DIFFERENT
        return EXIT_OK

    def tick(self) -> None:
        """One turn of the loop: events, messages, a picture if there is something new."""
        self.ticks += 1
        events = pygame.event.get()
        for event in events:
            self.handle(event)
        now = time.monotonic()
        self._messages += [(now, text) for text in self._drain()]
        self._messages = [(at, text) for at, text in self._messages if now - at < _MESSAGE_SECONDS][-3:]
        patience = _REDRAW_SECONDS.get(self.engine.state.phase, 0.04)
        seen = all(event.type in _SILENT for event in events) and self.engine.latest is self._drawn_shot
        if not seen or now - self._drawn_at > patience:
            self.draw()
            self._drawn_at = now
        self._check_end()

    def _drain(self) -> list[str]:
        found: list[str] = []
        while not self.engine.messages.empty():
            found.append(self.engine.messages.get())
            if self.settings.headless:
                print(found.pop(), file=sys.stderr)
        return found

    def _check_end(self) -> None:
        engine = self.engine
        if engine.state.phase == FAILED and self.settings.headless:
            self.running = False
        if self._ended or not engine.feed_done or engine.state.phase != PLAYING:
            return
        self._ended = True
        self.draw()
        if self.settings.screenshot is not None:
            self.screenshot(self.settings.screenshot)
        if self.settings.headless:
            self.running = False

    # -- events -------------------------------------------------------------------------------------------------------

    def handle(self, event: pygame.event.Event) -> None:
        """React to one event."""
        if event.type == pygame.QUIT:
            self.running = False
        elif event.type == pygame.VIDEORESIZE:
            self.window = pygame.display.get_surface() or self.window
            self.theme = Theme(_theme_scale(self.window))
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.mailbox.release_all()
        elif event.type == pygame.KEYDOWN:
            self._key_down(event.key)
        elif event.type == pygame.KEYUP:
            self.mailbox.release(event.key)
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button in MOUSE_BUTTONS and self._playing:
            self.mailbox.press(("mouse", event.button), MOUSE_BUTTONS[event.button])
            self.engine.wake()
        elif event.type == pygame.MOUSEBUTTONUP:
            self.mailbox.release(("mouse", event.button))
        elif event.type == pygame.MOUSEMOTION and self.mouse_look:
            self.mailbox.look(*event.rel)
            self.engine.wake()

    @property
    def _playing(self) -> bool:
        return self.engine.state.phase == PLAYING and self._cards is None and not self.shows["help"]

    def _key_down(self, key: int) -> None:
        if self._cards is not None and self._key_in_list(key):
            return
        if key in MOVES:
            if self._playing:
                self.mailbox.press(key, MOVES[key])
                self.engine.wake()
        elif key in COMMANDS:
            self.command(COMMANDS[key])

    def _key_in_list(self, key: int) -> bool:
        cards = self._cards or []
        if key in (pygame.K_UP, pygame.K_DOWN) and cards:
            self._chosen = (self._chosen + (1 if key == pygame.K_DOWN else -1)) % len(cards)
            return True
        if key in (pygame.K_RETURN, pygame.K_KP_ENTER):
            if cards:
                self.bookmarks.clear()
                self.engine.load(cards[self._chosen].folder)
            self._cards = None
            return True
        return False

    def command(self, name: str) -> None:
        """Carry out a command of the key map."""
        engine = self.engine
        if name == "back":
            self._back()
        elif name == "help":
            self.shows["help"] = not self.shows["help"]
        elif name == "fullscreen":
            pygame.display.toggle_fullscreen()
        elif name == "screenshot":
            self.screenshot(unused_folder(self.settings.folder / "screenshots", time_stamp()).with_suffix(".png"))
        elif name == "mouse":
            self._set_mouse_look(not self.mouse_look)
        elif name == "smooth":
            self.view.smooth = not self.view.smooth
        elif name in ("hud", "minimap", "memory"):
            self.shows[name] = not self.shows[name]
        elif engine.state.phase == FAILED:
            if name == "reset":
                self._try_again()
        elif engine.state.phase == PLAYING:
            self._command_engine(name)

    def _command_engine(self, name: str) -> None:
        engine = self.engine
        if name == "pause":
            engine.set_paused(not engine.paused)
        elif name == "single step":
            engine.single_step()
        elif name in ("reset", "new world"):
            self.bookmarks.clear()
            self.shows["compare"] = False
            source = engine.source
            seed = source.seed if source is not None else int(self.settings.seed or 0)
            engine.reset(seed + 1 if name == "new world" else seed)
        elif name == "save":
            engine.save()
        elif name == "load":
            self._cards = None if self._cards is not None else list_saves(self.settings.folder / "saves")
            self._chosen = 0
            self.mailbox.release_all()
        elif name == "record":
            engine.toggle_recording()
        elif name == "truth":
            self.shows["truth"] = not self.shows["truth"]
            self.shows["compare"] = False
            engine.set_truth(self.shows["truth"])
        elif name == "bookmark" and engine.latest is not None:
            shot = engine.latest
            self.bookmarks.append(Bookmark(shot.pose, shot.frame, shot.index))
            self._say(f"bookmark {len(self.bookmarks)}: J compares with it")
        elif name == "compare":
            if self.bookmarks:
                self.shows["compare"] = not self.shows["compare"]
            else:
                self._say("no bookmark yet: K sets one here")

    def _back(self) -> None:
        if self.shows["help"]:
            self.shows["help"] = False
        elif self._cards is not None:
            self._cards = None
        elif self.mouse_look:
            self._set_mouse_look(False)
        else:
            self.running = False

    def _set_mouse_look(self, on: bool) -> None:
        self.mouse_look = on
        pygame.event.set_grab(on)
        pygame.mouse.set_visible(not on)
        pygame.mouse.get_rel()

    def _try_again(self) -> None:
        self.engine.stop()
        self.engine = self._new_engine()
        self._ended = False
        self.engine.start()

    def _say(self, text: str) -> None:
        self._messages.append((time.monotonic(), text))

    # -- pictures -----------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw everything and show it."""
        engine, theme, target = self.engine, self.theme, self.window
        state, shot = engine.state, engine.latest
        self._drawn_shot = shot
        target.fill(BACKGROUND)
        if state.phase == FAILED:
            if shot is not None:
                self.view.single(target, target.get_rect(), shot)
            draw_failure(target, theme, state.text)
        elif state.phase != PLAYING or shot is None:
            draw_start(target, theme, state)
        else:
            self._draw_play(shot)
        draw_messages(target, theme, [text for _, text in self._messages])
        if self._cards is not None:
            draw_saves(target, theme, self._cards, self._chosen)
        if self.shows["help"]:
            draw_help(target, theme)
        pygame.display.flip()

    def _draw_play(self, shot: Shot) -> None:
        engine, theme, target = self.engine, self.theme, self.window
        area = target.get_rect()
        source = engine.source
        title = source.title if source is not None else ""
        self._set_caption(f"decmem: {title}, world {source.seed}" if source is not None else "decmem")
        if self.shows["memory"]:
            gap, height = theme.px(6), strip_height(theme)
            strip = pygame.Rect(gap, area.bottom - height - gap, area.width - 2 * gap, height)
            draw_memory_strip(target, theme, strip, shot, engine.history)
            area = pygame.Rect(0, 0, area.width, strip.top - gap)
        alone = not (self.shows["compare"] or self.shows["truth"])
        picture = area.copy()
        if not alone and (self.shows["hud"] or self.shows["minimap"]):
            # Two pictures are wide and low: figures and map go below instead of over them.
            picture.height -= theme.px(186)
            area = pygame.Rect(0, picture.bottom, area.width, area.height - picture.height)
        if alone:
            self._crosshair(self.view.single(target, picture, shot))
        elif self.shows["compare"]:
            self.view.compare(target, theme, picture, shot, self.bookmarks)
        else:
            self.view.split(target, theme, picture, shot, title)
        if self.shows["minimap"]:
            side = theme.px(176 if alone else 166)
            box = pygame.Rect(area.right - theme.px(10) - side, area.top + theme.px(10), side, side)
            draw_minimap(target, theme, box, shot, engine.history.poses(), [mark.pose for mark in self.bookmarks])
        if self.shows["hud"]:
            chips = draw_hud(target, theme, area, shot, engine.timing(), self._facts(shot, title), beside=not alone)
            draw_lamps(target, theme, area if alone else pygame.Rect(chips, area.y, 0, area.height), shot.action)

    def _set_caption(self, words: str) -> None:
        if pygame.display.get_caption()[0] != words:
            pygame.display.set_caption(words)

    def _crosshair(self, picture: pygame.Rect) -> None:
        """Where breaking and placing aim."""
        reach, (x, y) = self.theme.px(6), picture.center
        sheet = pygame.Surface((2 * reach + 1, 2 * reach + 1), pygame.SRCALPHA)
        pygame.draw.line(sheet, (255, 255, 255, 170), (reach, 0), (reach, 2 * reach), 1)
        pygame.draw.line(sheet, (255, 255, 255, 170), (0, reach), (2 * reach, reach), 1)
        self.window.blit(sheet, (x - reach, y - reach))

    def _facts(self, shot: Shot, title: str) -> HudFacts:
        engine = self.engine
        if self._returned[0] is not shot:
            self._returned = (shot, engine.history.returned_after())
        source, verdict = engine.source, engine.verdict
        status = None
        if verdict is not None:
            status = verdict.sentence()
        elif not engine.feed_done:
            status = "script"
        return HudFacts(
            title=title,
            seed=source.seed if source is not None else 0,
            pose_source=source.pose_source if source is not None else "",
            paused=engine.paused,
            resting=engine.resting,
            recording_frames=engine.recorded_frames,
            returned_after=self._returned[1],
            status=status,
        )

    def screenshot(self, path: Path) -> None:
        """Write the window's picture as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pygame.image.save(self.window, str(path))
        self._say(f"screenshot: {path}")


def _fitting_scale() -> int:
    """Window pixels per frame pixel that fill about three quarters of the screen."""
    sizes = pygame.display.get_desktop_sizes()
    width, height = sizes[0] if sizes else (1280, 800)
    return max(3, min(8, int(0.8 * width / _FRAME[0]), int(0.8 * height / _FRAME[1])))


def _theme_scale(window: pygame.Surface) -> float:
    width, height = window.get_size()
    return float(np.clip(min(width / 960.0, height / 576.0), 0.7, 2.5))
