"""Action plans that leave a place and come back to it after a given number of frames.

Every plan has a context part (observed) and a generated part. On the grid of poses turns are steps of 15 degrees and
steps are whole; off it both are uneven. Reversing pure turns and pure steps returns to the very same poses as long as
nothing blocks the way, whatever the angles.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import CAMERA_STEP_DEGREES, Action, noop, press

Plan = list[NDArray[np.float32]]
Rng = np.random.Generator

_OPPOSITE = {
    Action.FORWARD: Action.BACK,
    Action.BACK: Action.FORWARD,
    Action.LEFT: Action.RIGHT,
    Action.RIGHT: Action.LEFT,
}
_NEAR_SHIFT = 4  # steps of walking within which a view is near, so that a gap begins that much later


def act(entry: Action | None = None, value: float = 1.0) -> NDArray[np.float32]:
    """One action with one entry set."""
    return noop() if entry is None else press(entry, value)


def wait(frames: int) -> Plan:
    """Do nothing."""
    return [act()] * max(0, frames)


def turn(rng: Rng, grid: bool, degrees: float, mean: float = 15.0) -> Plan:
    """Turn by about so many degrees (exactly, off the grid), in steps of 15 or in uneven ones around `mean`."""
    sign = float(np.sign(degrees))
    if grid:
        return [act(Action.CAMERA_YAW, sign)] * round(abs(degrees) / CAMERA_STEP_DEGREES)
    count = max(1, round(abs(degrees) / mean))
    sizes = rng.uniform(0.6, 1.4, count)
    return [
        act(Action.CAMERA_YAW, sign * float(size) / CAMERA_STEP_DEGREES) for size in sizes * abs(degrees) / sizes.sum()
    ]


def stride(rng: Rng, grid: bool, steps: int, entry: Action = Action.FORWARD) -> Plan:
    """Walk straight, off the grid at uneven speed."""
    return [act(entry, 1.0 if grid else float(rng.uniform(0.6, 1.0))) for _ in range(steps)]


def leg(rng: Rng, grid: bool, steps: int) -> Plan:
    """Walk ahead with small turns between stretches."""
    plan: Plan = []
    while steps > 0:
        stretch = min(steps, int(rng.integers(4, 12)))
        plan += stride(rng, grid, stretch)
        steps -= stretch
        if steps > 0:
            plan += turn(rng, grid, float(rng.choice([-1, 1])) * rng.uniform(10.0, 35.0))
    return plan


def wander(rng: Rng, grid: bool, frames: int) -> Plan:
    """Explore for exactly so many frames."""
    plan: Plan = []
    while len(plan) < frames:
        plan += turn(rng, grid, float(rng.choice([-1, 1])) * rng.uniform(15.0, 120.0))
        plan += stride(rng, grid, int(rng.integers(2, 9)))
    return plan[:frames]


def reverse(plan: Plan) -> Plan:
    """Undo a plan of pure turns and pure steps, last action first."""
    result = []
    for action in reversed(plan):
        undone = action.copy()
        for entry in (Action.CAMERA_YAW, Action.CAMERA_PITCH):
            undone[entry] = -action[entry]
        for entry, opposite in _OPPOSITE.items():
            undone[opposite] = action[entry]
        result.append(undone)
    return result


def sidestep(rng: Rng, grid: bool) -> Plan:
    """Move by 0.4 to 1.8 blocks (off the grid turn by up to 12 degrees, too): the way back is then near, not exact."""
    entry = Action(rng.choice([Action.FORWARD, Action.BACK, Action.LEFT, Action.RIGHT]))
    plan = [act(entry)] * int(rng.integers(1, 5))
    if not grid:
        plan += [act(Action.CAMERA_YAW, float(rng.uniform(-12.0, 12.0)) / CAMERA_STEP_DEGREES)]
    return plan


def swings(rng: Rng, grid: bool, frames: int, side: float) -> Plan:
    """Look about within 60 degrees to one side and back, for exactly so many frames."""
    plan: Plan = []
    while True:
        swing = turn(rng, grid, side * rng.uniform(20.0, 60.0))
        if len(plan) + 2 * len(swing) > frames:
            return [*plan, *wait(frames - len(plan))]
        plan += [*swing, *wait(min(int(rng.integers(0, 4)), frames - len(plan) - 2 * len(swing))), *reverse(swing)]


def turn_away(rng: Rng, grid: bool, gap: int, near: bool) -> tuple[Plan, Plan]:
    """Face away from what was just seen, look about there, turn back."""
    side = float(rng.choice([-1, 1]))
    pan = turn(rng, grid, side * 60.0)
    away = [*pan, *turn(rng, grid, side * 105.0)]  # leaves along the very poses of the pan
    offset = sidestep(rng, grid) if near else []
    rest = max(0, round(1.22 * gap) - 2 * len(away) - len(offset))
    out = [*away, *swings(rng, grid, rest, side), *offset, *reverse(away)]
    # The context shows the other directions, too: what lies there is remembered, not invented.
    around = turn(rng, grid, side * 360.0)
    return [*around, *pan, *reverse(pan)], [*out, *reverse(pan), *pan]


def aba(rng: Rng, grid: bool, gap: int, near: bool) -> tuple[Plan, Plan]:
    """Walk from A to B, look around at B, come back along the same poses."""
    out = leg(rng, grid, max(14, gap // 3))
    offset = sidestep(rng, grid) if near else []
    look = turn(rng, grid, 360.0 * float(rng.choice([-1, 1])))
    # A view s steps before B returns after the stay and 2 s frames: aim the middle of the way at the gap.
    stay = max(len(look), round(1.12 * gap) - len(out) + _NEAR_SHIFT)
    linger = (
        [*look, *swings(rng, grid, stay - len(look) - len(offset), 1.0)] if stay > len(look) + len(offset) else look
    )
    return out, [*linger, *offset, *reverse(out)]


def abca(rng: Rng, grid: bool, gap: int, near: bool) -> tuple[Plan, Plan]:
    """A triangle: look about at A, walk to B and C, walk straight back to A, look again."""
    side = float(rng.choice([-1, 1]))
    corner = turn(rng, grid, side * 120.0)
    pan = turn(rng, grid, -side * 60.0)
    edge = max(8, round((1.15 * gap - 3 * len(corner)) / 3))
    walk = [act(Action.FORWARD)] * edge
    offset = sidestep(rng, grid) if near else []
    return (
        [*pan, *reverse(pan), *walk, *corner],
        [*walk, *corner, *walk, *offset, *corner, *pan, *reverse(pan)],
    )


def look360(rng: Rng, grid: bool, gap: int, near: bool) -> tuple[Plan, Plan]:
    """Turn once around slowly, then once more: everything returns after one revolution."""
    side = float(rng.choice([-1, 1]))
    frames = round(1.2 * gap)
    if grid:
        holds = [frames // 24 + (i < frames % 24) for i in rng.permutation(24)]
        once = [a for hold in holds for a in [act(Action.CAMERA_YAW, side), *wait(hold - 1)]]
    else:
        once = turn(rng, False, side * 360.0, mean=360.0 / frames)
    return once, [*(sidestep(rng, grid) if near else []), *once]


def loop(rng: Rng, grid: bool, gap: int, near: bool) -> tuple[Plan, Plan]:
    """Two laps of a square; the second is generated."""
    side = float(rng.choice([-1, 1]))
    corner = turn(rng, grid, side * 90.0)
    edge = max(6, round((1.15 * gap + _NEAR_SHIFT) / 4) - len(corner))
    lap = [a for _ in range(4) for a in [*[act(Action.FORWARD)] * edge, *corner]]
    return lap, [*(sidestep(rng, grid) if near else []), *lap]


PLANS: dict[str, Callable[[Rng, bool, int, bool], tuple[Plan, Plan]]] = {
    "turn_away": turn_away,
    "aba": aba,
    "abca": abca,
    "look360": look360,
    "loop": loop,
}
