"""Actions: the 25 entries of WorldMem's model action and the friendlier ways to write one.

The canonical action is a float32 vector of 25 entries (WorldMem, arXiv 2504.12369; see `Action`). Key entries are 0 or
1 (voxel worlds also take fractions of `FORWARD` and its siblings as a speed factor); the two camera entries count steps
of 15 degrees: `CAMERA_PITCH` positive looks down, `CAMERA_YAW` positive turns right. `actions[t]` is the action that
led to frame t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

ACTION_DIM = 25
CAMERA_STEP_DEGREES = 15.0
MAX_CAMERA_STEPS = 12.0  # half a turn in one frame


class Action(IntEnum):
    """Index of each entry of the 25-vector; 15 is pitch, 16 is yaw (Oasis names the two the other way round)."""

    INVENTORY = 0
    ESC = 1
    HOTBAR_1 = 2
    HOTBAR_2 = 3
    HOTBAR_3 = 4
    HOTBAR_4 = 5
    HOTBAR_5 = 6
    HOTBAR_6 = 7
    HOTBAR_7 = 8
    HOTBAR_8 = 9
    HOTBAR_9 = 10
    FORWARD = 11
    BACK = 12
    LEFT = 13
    RIGHT = 14
    CAMERA_PITCH = 15
    CAMERA_YAW = 16
    JUMP = 17
    SNEAK = 18
    SPRINT = 19
    SWAP_HANDS = 20
    ATTACK = 21
    USE = 22
    PICK_ITEM = 23
    PLACE = 24  # WorldMem re-uses "drop" as "use or place item"


CAMERA_ENTRIES = (Action.CAMERA_PITCH, Action.CAMERA_YAW)

# (name, entry, value); index 0 is the no-op.
_DISCRETE: tuple[tuple[str, Action | None, float], ...] = (
    ("noop", None, 0.0),
    ("forward", Action.FORWARD, 1.0),
    ("back", Action.BACK, 1.0),
    ("left", Action.LEFT, 1.0),
    ("right", Action.RIGHT, 1.0),
    ("turn_left", Action.CAMERA_YAW, -1.0),
    ("turn_right", Action.CAMERA_YAW, 1.0),
    ("look_up", Action.CAMERA_PITCH, -1.0),
    ("look_down", Action.CAMERA_PITCH, 1.0),
    ("jump", Action.JUMP, 1.0),
    ("place", Action.PLACE, 1.0),
    ("break", Action.ATTACK, 1.0),
)
DISCRETE_ACTIONS: tuple[str, ...] = tuple(name for name, _, _ in _DISCRETE)

# Axes of the multi-discrete space; entry 0 of every axis does nothing.
MULTIDISCRETE_AXES: tuple[tuple[str, tuple[tuple[Action, float], ...]], ...] = (
    ("walk", ((Action.FORWARD, 1.0), (Action.BACK, 1.0))),
    ("strafe", ((Action.LEFT, 1.0), (Action.RIGHT, 1.0))),
    ("pitch", ((Action.CAMERA_PITCH, -1.0), (Action.CAMERA_PITCH, 1.0))),
    ("yaw", ((Action.CAMERA_YAW, -1.0), (Action.CAMERA_YAW, 1.0))),
    ("jump", ((Action.JUMP, 1.0),)),
    ("hand", ((Action.ATTACK, 1.0), (Action.PLACE, 1.0))),
)
MULTIDISCRETE_SIZES: tuple[int, ...] = tuple(1 + len(options) for _, options in MULTIDISCRETE_AXES)

# Binary keys of the MineRL-style dictionary; `camera` is (pitch, yaw) in degrees.
DICT_KEYS: dict[str, Action] = {
    "forward": Action.FORWARD,
    "back": Action.BACK,
    "left": Action.LEFT,
    "right": Action.RIGHT,
    "jump": Action.JUMP,
    "attack": Action.ATTACK,
    "use": Action.PLACE,
}

_KEYMAPS: dict[str, dict[str, tuple[Action, float] | None]] = {
    "decmem": {
        "W": (Action.FORWARD, 1.0),
        "S": (Action.BACK, 1.0),
        "A": (Action.LEFT, 1.0),
        "D": (Action.RIGHT, 1.0),
        "L": (Action.CAMERA_YAW, -1.0),
        "R": (Action.CAMERA_YAW, 1.0),
        "U": (Action.CAMERA_PITCH, -1.0),
        "J": (Action.CAMERA_PITCH, 1.0),
        "SPACE": (Action.JUMP, 1.0),
        "P": (Action.PLACE, 1.0),
        "B": (Action.ATTACK, 1.0),
        "N": None,
    },
    # The web demo of WorldMem: one key, one frame.
    "worldmem": {
        "Q": (Action.FORWARD, 1.0),
        "E": (Action.BACK, 1.0),
        "W": (Action.CAMERA_PITCH, -1.0),
        "S": (Action.CAMERA_PITCH, 1.0),
        "A": (Action.CAMERA_YAW, -1.0),
        "D": (Action.CAMERA_YAW, 1.0),
        "U": (Action.PLACE, 1.0),
        "1": (Action.HOTBAR_1, 1.0),
        "N": None,
    },
}
KEYMAPS = tuple(_KEYMAPS)


def noop() -> NDArray[np.float32]:
    """Return the action that does nothing, float32 [25]."""
    return np.zeros(ACTION_DIM, np.float32)


def press(entry: Action, value: float = 1.0) -> NDArray[np.float32]:
    """Return an action with one entry set, float32 [25]."""
    vector = noop()
    vector[entry] = value
    return vector


def discrete_to_vector(index: int) -> NDArray[np.float32]:
    """Turn an index into `DISCRETE_ACTIONS` into a 25-vector.

    Args:
        index: 0 to 11.

    Returns:
        float32 [25].

    Raises:
        ValueError: The index is out of range.
    """
    if not 0 <= int(index) < len(_DISCRETE):
        raise ValueError(f"action {index!r} is out of range: expected an integer from 0 to {len(_DISCRETE) - 1}")
    _, entry, value = _DISCRETE[int(index)]
    vector = noop()
    if entry is not None:
        vector[entry] = value
    return vector


def multidiscrete_to_vector(choice: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
    """Turn one choice per axis of `MULTIDISCRETE_AXES` into a 25-vector.

    Args:
        choice: Integers, one an axis (walk, strafe, pitch, yaw, jump, hand); 0 does nothing.

    Returns:
        float32 [25].

    Raises:
        ValueError: Wrong number of axes, or a choice out of range.
    """
    values = np.asarray(choice)
    if values.shape != (len(MULTIDISCRETE_AXES),):
        names = ", ".join(name for name, _ in MULTIDISCRETE_AXES)
        raise ValueError(f"multidiscrete action has shape {values.shape}: expected one integer for each of {names}")
    vector = noop()
    for value, (name, options) in zip(values.tolist(), MULTIDISCRETE_AXES, strict=True):
        if not 0 <= value <= len(options):
            raise ValueError(f"multidiscrete action: {name}={value} is out of range 0 to {len(options)}")
        if value:
            entry, amount = options[value - 1]
            vector[entry] = amount
    return vector


def dict_to_vector(action: Mapping[str, object]) -> NDArray[np.float32]:
    """Turn a MineRL-style dictionary into a 25-vector.

    Args:
        action: Any of `DICT_KEYS` (0 or 1) and `camera` = (pitch, yaw) in degrees; missing keys are 0.

    Returns:
        float32 [25].

    Raises:
        ValueError: An unknown key or a malformed value.
    """
    vector = noop()
    for key, value in action.items():
        if key == "camera":
            camera = np.asarray(value, np.float32)
            if camera.shape != (2,):
                raise ValueError(f"action['camera'] has shape {camera.shape}: expected (pitch, yaw) in degrees")
            vector[[Action.CAMERA_PITCH, Action.CAMERA_YAW]] = camera / np.float32(CAMERA_STEP_DEGREES)
        elif key in DICT_KEYS:
            pressed = np.asarray(value).reshape(-1)
            if pressed.size != 1 or pressed[0] not in (0, 1):
                raise ValueError(f"action[{key!r}] is {value!r}: expected 0 or 1")
            vector[DICT_KEYS[key]] = float(pressed[0])
        else:
            raise ValueError(f"unknown action key {key!r}: expected one of {sorted([*DICT_KEYS, 'camera'])}")
    return validate_vector(vector)


def validate_vector(action: object) -> NDArray[np.float32]:
    """Check one or more 25-vectors and return them as float32.

    Args:
        action: Array-like [..., 25]; keys in [0, 1], camera entries in [-12, 12] steps of 15 degrees.

    Returns:
        float32 array of the same shape.

    Raises:
        ValueError: Wrong shape, NaN or a value out of range.
    """
    array = np.asarray(action, np.float32)
    if array.ndim == 0 or array.shape[-1] != ACTION_DIM:
        raise ValueError(
            f"action has shape {array.shape}: expected 25 floats in the last axis (see conventions.actions.Action)"
        )
    if not np.isfinite(array).all():
        raise ValueError("action holds NaN or infinity: expected finite floats")
    camera = array[..., list(CAMERA_ENTRIES)]
    if np.abs(camera).max(initial=0.0) > MAX_CAMERA_STEPS:
        raise ValueError(
            f"camera entries 15 and 16 must lie in [-12, 12] steps of 15 degrees, got {float(np.abs(camera).max()):g}"
        )
    keys = np.delete(array, list(CAMERA_ENTRIES), axis=-1)
    if keys.min(initial=0.0) < 0 or keys.max(initial=0.0) > 1:
        raise ValueError("action key entries must lie in [0, 1]")
    return array


def parse_action_string(text: str, keymap: str = "decmem") -> NDArray[np.float32]:
    """Read an action script such as `"W*20 L*24 W+L*3 N"`.

    Args:
        text: Words of keys, `KEY*COUNT`, keys pressed together joined by `+`. For the `worldmem` key map a word
            without `*` or `+` may also be a run of single keys (`"QQQAAA"`).
        keymap: `decmem` (W S A D walk and strafe, L R turn, U J look up and down, SPACE jump, P place, B break,
            N nothing) or `worldmem` (the keys of its web demo).

    Returns:
        float32 [T, 25].

    Raises:
        ValueError: Unknown key map, unknown key or bad count, named with its word.
    """
    if keymap not in _KEYMAPS:
        raise ValueError(f"unknown keymap {keymap!r}: expected one of {', '.join(KEYMAPS)}")
    keys = _KEYMAPS[keymap]
    rows: list[NDArray[np.float32]] = []
    for word in text.upper().replace(",", " ").split():
        press, _, count_text = word.partition("*")
        if count_text and not count_text.isdigit() or word.endswith("*"):
            raise ValueError(f"action string: {word!r} has no whole number after '*' (write for example W*20)")
        count = int(count_text) if count_text else 1
        names = press.split("+")
        single_run = keymap == "worldmem" and len(names) == 1 and press not in keys and all(c in keys for c in press)
        for group in [[c] for c in press] if single_run else [names]:
            vector = noop()
            for name in group:
                if name not in keys:
                    raise ValueError(
                        f"action string: unknown key {name!r} in {word!r}; keys of {keymap}: {' '.join(keys)}"
                    )
                binding = keys[name]
                if binding is not None:
                    vector[binding[0]] = binding[1]
            rows.extend([vector] * count)
    if not rows:
        raise ValueError('action string is empty: write for example "W*20 L*24 S*20"')
    return np.stack(rows).astype(np.float32)


def format_action_string(actions: NDArray[np.floating]) -> str:
    """Write 25-vectors as an action string of the `decmem` key map, run lengths merged.

    Args:
        actions: [T, 25] with entries that the key map can say (whole camera steps of +-1).

    Returns:
        A string that `parse_action_string` reads back to the same actions.

    Raises:
        ValueError: An entry that has no key.
    """
    words: list[tuple[str, int]] = []
    by_binding = {binding: key for key, binding in _KEYMAPS["decmem"].items() if binding is not None}
    for row in validate_vector(actions).reshape(-1, ACTION_DIM):
        pressed = []
        for index in np.flatnonzero(row):
            binding = (Action(int(index)), float(row[index]))
            if binding not in by_binding:
                raise ValueError(f"action entry {binding[0].name}={binding[1]:g} has no key in the decmem key map")
            pressed.append(by_binding[binding])
        word = "+".join(pressed) or "N"
        if words and words[-1][0] == word:
            words[-1] = (word, words[-1][1] + 1)
        else:
            words.append((word, 1))
    return " ".join(word if count == 1 else f"{word}*{count}" for word, count in words)
