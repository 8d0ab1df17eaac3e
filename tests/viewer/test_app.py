import time

import numpy as np
import pygame
import pytest

from decmem_env.conventions.actions import Action
from decmem_env.viewer.app import EXIT_DIFFERENT, EXIT_FAILED, EXIT_OK, App
from decmem_env.viewer.engine_thread import PLAYING
from decmem_env.viewer.settings import PlaySettings


def pixels(window):
    window.draw()
    return pygame.surfarray.array3d(window.window).copy()


def test_the_window_opens_and_draws_the_frame(app):
    window = app(turn_based=True)
    for name in ("hud", "minimap"):
        window.shows[name] = False
    window.view.smooth = False
    picture = pixels(window).transpose(1, 0, 2)
    frame = window.engine.latest.frame
    factor = picture.shape[0] // frame.shape[0]
    assert picture.shape[:2] == (96 * 4, 160 * 4)
    np.testing.assert_array_equal(picture[factor // 2 :: factor, factor // 2 :: factor], frame)


def test_keys_reach_the_engine(app, wait_for):
    window = app(rate=500.0)
    window.handle(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_w))
    window.handle(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT))
    wait_for(lambda: window.engine.latest.action[Action.FORWARD] == 1)
    assert window.engine.latest.action[Action.CAMERA_YAW] == -1
    window.handle(pygame.event.Event(pygame.KEYUP, key=pygame.K_w))
    window.handle(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    wait_for(lambda: not window.engine.latest.action.any())


def test_mouse_buttons_break_and_place_and_capture_looks(app, press, wait_for):
    window = app(turn_based=True, rate=500.0)
    window.handle(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(5, 5)))
    wait_for(lambda: window.engine.latest.action[Action.ATTACK] == 1)
    window.handle(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=3, pos=(5, 5)))
    wait_for(lambda: window.engine.latest.action[Action.PLACE] == 1)
    before = window.engine.latest.index
    window.handle(pygame.event.Event(pygame.MOUSEMOTION, rel=(50, 0)))
    assert not window.mailbox.wants  # the mouse is free until M
    press(window, pygame.K_m)
    window.handle(pygame.event.Event(pygame.MOUSEMOTION, rel=(50, 0)))
    wait_for(lambda: window.engine.latest.index == before + 1)
    assert window.engine.latest.action[Action.CAMERA_YAW] == pytest.approx(0.4)
    press(window, pygame.K_ESCAPE)
    assert not window.mouse_look


def test_every_overlay_changes_the_picture_and_back(app, press, wait_for):
    window = app(turn_based=True)
    window.engine.single_step()
    wait_for(lambda: window.engine.latest.index == 3)
    press(window, pygame.K_RETURN)
    plain = pixels(window)
    for key in (pygame.K_TAB, pygame.K_g, pygame.K_v, pygame.K_i, pygame.K_h, pygame.K_F8):
        press(window, key)
        changed = pixels(window)
        assert (changed != plain).any(), pygame.key.name(key)
        press(window, key)
        assert (pixels(window) != plain).mean() < 0.01, pygame.key.name(key)  # only figures may have moved


def test_truth_beside_the_dream(app, press, wait_for):
    window = app(turn_based=True)
    press(window, pygame.K_t)
    wait_for(lambda: window.engine.latest.truth is not None)
    shown = pixels(window)
    press(window, pygame.K_t)
    assert (pixels(window) != shown).mean() > 0.3


def test_bookmark_and_compare(app, press, wait_for):
    window = app(turn_based=True)
    press(window, pygame.K_j)
    assert not window.shows["compare"]  # nothing to compare with yet
    press(window, pygame.K_k)
    press(window, pygame.K_j)
    assert window.shows["compare"] and window.bookmarks[0].index == 2
    assert pixels(window).any()
    press(window, pygame.K_n)
    wait_for(lambda: window.engine.source.seed == 8_000_001)
    assert not window.bookmarks and not window.shows["compare"]


def test_reset_and_new_world(app, press, wait_for):
    window = app(turn_based=True, seed=5)
    press(window, pygame.K_n)
    wait_for(lambda: window.engine.source.seed == 6 and window.engine.state.phase == PLAYING)
    window.engine.single_step()
    wait_for(lambda: window.engine.latest.index == 3)
    press(window, pygame.K_r)
    wait_for(lambda: window.engine.latest.index == 2)
    assert window.engine.source.seed == 6 and len(window.engine.history) == 3


def test_save_and_load_from_the_list(app, tmp_path, press, wait_for):
    window = app(turn_based=True)
    window.engine.single_step()
    wait_for(lambda: window.engine.latest.index == 3)
    press(window, pygame.K_F5)
    wait_for(lambda: list((tmp_path / "saves").glob("*/viewer.json")))
    press(window, pygame.K_r)
    wait_for(lambda: window.engine.latest.index == 2)
    press(window, pygame.K_F8)
    window.draw()
    press(window, pygame.K_DOWN)
    press(window, pygame.K_RETURN)
    wait_for(lambda: window.engine.latest.index == 3)
    assert len(window.engine.history) >= 1 and window.engine.latest.index == 3


def test_the_window_stays_alive_while_the_model_works(app, FakeSource):
    window = app(FakeSource(seconds=0.2), rate=10.0)
    window.handle(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_w))
    clock, first, start, longest = pygame.time.Clock(), window.engine.latest.index, time.monotonic(), 0.0
    before = window.ticks
    while time.monotonic() - start < 1.5:
        turn = time.monotonic()
        window.tick()
        longest = max(longest, time.monotonic() - turn)
        clock.tick(60)
    rate = (window.ticks - before) / (time.monotonic() - start)
    assert rate >= 30, f"{rate:.0f} turns a second"
    assert longest < 0.15, f"one turn took {1e3 * longest:.0f} ms, as if it waited for the model"
    assert 4 <= window.engine.latest.index - first <= 8


def test_a_failing_model_shows_an_error_and_can_be_tried_again(app, capfd, FakeSource, press, wait_for):
    source = FakeSource(fail_at=4)
    window = app(source, settle=False, rate=500.0)
    wait_for(lambda: window.engine.state.phase == "failed")
    picture = pixels(window)
    assert (picture[..., 0] > 200).any() and window.exit_code == EXIT_FAILED
    source.fail_at = None
    press(window, pygame.K_r)
    wait_for(lambda: window.engine.state.phase == PLAYING)
    assert window.exit_code == EXIT_OK
    assert "melted" in capfd.readouterr().err


def test_a_model_that_does_not_load_is_an_error_screen_too(tmp_path, capfd):
    def no_model():
        raise FileNotFoundError("checkpoint 'nope' is not bundled: run `decmem doctor`")

    window = App(PlaySettings(folder=tmp_path, script="W", headless=True), no_model)
    assert window.run() == EXIT_FAILED
    assert "the world stopped: checkpoint 'nope' is not bundled" in capfd.readouterr().err


def test_headless_script_screenshot_recording_and_replay(tmp_path, capfd, FakeSource):
    folder, shot = tmp_path / "r", tmp_path / "end.png"
    settings = {"headless": True, "folder": tmp_path}
    window = App(PlaySettings(script="W*6 L*2", record=folder, screenshot=shot, **settings), FakeSource)
    assert window.run() == EXIT_OK
    assert {"actions.jsonl", "meta.json", "video.mp4"} <= {path.name for path in folder.iterdir()}
    assert pygame.image.load(shot).get_size()[0] >= 480
    assert App(PlaySettings(replay=folder, **settings), FakeSource).run() == EXIT_OK
    assert "8 of 8 frames, bitwise equal" in capfd.readouterr().err
    assert App(PlaySettings(replay=folder, **settings), lambda: FakeSource(flavour=1)).run() == EXIT_DIFFERENT


def test_escape_and_the_close_button_quit(app, press):
    window = app(turn_based=True)
    press(window, pygame.K_h)
    press(window, pygame.K_ESCAPE)
    assert window.running and not window.shows["help"]
    press(window, pygame.K_ESCAPE)
    assert not window.running
    window.running = True
    window.handle(pygame.event.Event(pygame.QUIT))
    assert not window.running


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"headless": True}, "nothing to do without a window"),
        ({"script": "W", "replay": "x"}, "not both"),
        ({"rate": 0.0}, "above 0"),
        ({"scale": 0}, "at least 1"),
        ({"pose_source": "dream"}, "truth, predictor, kinematic"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PlaySettings(**settings)


def test_a_used_recording_folder_is_refused_before_anything_opens(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "actions.jsonl").touch()
    with pytest.raises(ValueError, match="holds a recording already"):
        App(PlaySettings(record=tmp_path / "r"), lambda: None)


@pytest.mark.parametrize("size", [(320, 200), (480, 700), (1600, 500)])
def test_every_view_draws_at_any_window_size(app, wait_for, size):
    window = app(turn_based=True)
    window.engine.single_step()
    wait_for(lambda: window.engine.latest.index == 3)
    window.window = pygame.display.set_mode(size, pygame.RESIZABLE)
    window.handle(pygame.event.Event(pygame.VIDEORESIZE, size=size, w=size[0], h=size[1]))
    assert window.window.get_size() == size
    window.command("bookmark")
    for name in ("memory", "truth", "compare", "help", "load", "back", "back", "compare"):
        window.command(name)
        window.draw()
    assert window.running
