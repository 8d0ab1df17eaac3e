import numpy as np
import pygame
import pytest

from decmem_env.conventions.actions import Action, validate_vector
from decmem_env.viewer.keymap import COMMANDS, HELP, MOUSE_DEGREES_PER_PIXEL, MOVES, ActionMailbox


def hold(box, *keys):
    for key in keys:
        box.press(key, MOVES[key])


@pytest.mark.parametrize(
    ("key", "entry", "value"),
    [
        (pygame.K_w, Action.FORWARD, 1.0),
        (pygame.K_s, Action.BACK, 1.0),
        (pygame.K_a, Action.LEFT, 1.0),
        (pygame.K_d, Action.RIGHT, 1.0),
        (pygame.K_LEFT, Action.CAMERA_YAW, -1.0),
        (pygame.K_RIGHT, Action.CAMERA_YAW, 1.0),
        (pygame.K_UP, Action.CAMERA_PITCH, -1.0),
        (pygame.K_DOWN, Action.CAMERA_PITCH, 1.0),
        (pygame.K_SPACE, Action.JUMP, 1.0),
        (pygame.K_p, Action.PLACE, 1.0),
        (pygame.K_b, Action.ATTACK, 1.0),
    ],
)
def test_each_key_fills_its_entry_and_no_other(key, entry, value):
    box = ActionMailbox()
    hold(box, key)
    vector = box.take()
    assert vector[entry] == value and np.count_nonzero(vector) == 1


def test_held_keys_combine_last_and_end():
    box = ActionMailbox()
    hold(box, pygame.K_w, pygame.K_LEFT, pygame.K_SPACE)
    first, second = box.take(), box.take()
    assert first[Action.FORWARD] == 1 and first[Action.CAMERA_YAW] == -1 and first[Action.JUMP] == 1
    np.testing.assert_array_equal(first, second)
    for key in (pygame.K_w, pygame.K_LEFT, pygame.K_SPACE):
        box.release(key)
    assert not box.take().any() and not box.wants


def test_opposite_keys_cancel():
    box = ActionMailbox()
    hold(box, pygame.K_w, pygame.K_s, pygame.K_LEFT, pygame.K_RIGHT)
    assert not box.take().any()


def test_a_tap_between_two_frames_counts_once():
    box = ActionMailbox()
    hold(box, pygame.K_w)
    box.release(pygame.K_w)
    assert box.take()[Action.FORWARD] == 1
    assert not box.take().any()


def test_one_press_places_one_block():
    box = ActionMailbox()
    hold(box, pygame.K_p)
    assert box.take()[Action.PLACE] == 1
    assert box.take()[Action.PLACE] == 0


def test_mouse_movement_adds_up_and_is_worked_off_step_by_step():
    box = ActionMailbox()
    for _ in range(10):
        box.look(5.0, 0.0)
    assert box.take()[Action.CAMERA_YAW] == pytest.approx(50 * MOUSE_DEGREES_PER_PIXEL / 15)
    box.look(2 * 15.0 / MOUSE_DEGREES_PER_PIXEL, 0.0)  # two camera steps at once
    assert [box.take()[Action.CAMERA_YAW] for _ in range(3)] == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)


def test_a_wild_mouse_stays_valid_and_does_not_lag_forever():
    box = ActionMailbox()
    box.look(1e6, -1e6)
    hold(box, pygame.K_RIGHT)
    turns = [validate_vector(box.take())[Action.CAMERA_YAW] for _ in range(3)]
    assert turns == [1.0, 1.0, 1.0]
    box.release(pygame.K_RIGHT)
    assert not box.take().any()


def test_release_all_forgets_everything():
    box = ActionMailbox()
    hold(box, pygame.K_w, pygame.K_b)
    box.look(100, 100)
    box.release_all()
    assert not box.wants and not box.take().any()


def test_no_key_has_two_meanings_and_all_are_in_the_help():
    assert not set(MOVES) & set(COMMANDS)
    shown = " ".join(key for _, rows in HELP for key, _ in rows).lower().split()
    pygame.display.init()
    for key in {**MOVES, **COMMANDS}:
        name = pygame.key.name(key)
        if name == "enter":  # of the number pad
            continue
        name = {"left": "arrows", "right": "arrows", "up": "arrows", "down": "arrows"}.get(name, name)
        name = {"return": "enter", "escape": "esc"}.get(name, name)
        assert name in shown, f"{name} is missing from the help"
