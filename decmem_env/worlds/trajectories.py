"""Walks through voxel worlds: exploration and scripts that force revisits.

A walk is planned as actions, then run through the simulator, so that poses always come from the true physics. Several
plans are drawn for each walk and the one that is blocked least wins. Reversing pure turns and pure steps returns to the
very same poses wherever the ground is level; the scripts of the revisit test (`decmem_env.revisit.plans`) draw
again until the return is exact. Walks of kind `edit` break and place blocks, go or look away and come back; walks of
kind `contact` run into walls, slide along them, climb and fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM, CAMERA_STEP_DEGREES, Action
from ..conventions.poses import WALK_SPEED, wrap_degrees
from .edited import Edits, no_edits
from .simulator import Simulator
from .terrain import World

SLOWEST = 16.0
_WANDER = ((2.0, 30.0), (1.0, 10.0))  # degrees of pitch and yaw to either side, log-uniform for each walk
_MOTION = [Action.FORWARD, Action.BACK, Action.LEFT, Action.RIGHT, Action.CAMERA_PITCH, Action.CAMERA_YAW]
_MIXED = ("explore", "turn_away", "aba", "abca", "look360", "loop")
KINDS = (*_MIXED, "edit", "contact")
_CONTACT = 0.35  # share of the way that walls take from a walk of kind `contact`, as near as the plans drawn come
Plan = list[NDArray[np.float32]]
Rng = np.random.Generator


class Trajectories(NamedTuple):
    """Walks of equal length.

    Attributes:
        actions: float32 [N, T, 25]; the first is the reset no-op.
        poses: float64 [N, T, 5].
        kind: Kind of each walk.
        edits: int32 [E, 5] of each walk, rows (t, x, z, y, block): what its player changed, from frame t on.
    """

    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    kind: list[str]
    edits: list[Edits]


def _act(entry: Action | None = None, value: float = 1.0) -> NDArray[np.float32]:
    action = np.zeros(ACTION_DIM, np.float32)
    if entry is not None:
        action[entry] = value
    return action


def _turn(rng: Rng, grid: bool, degrees: float) -> Plan:
    """Turn by about so many degrees: steps of 15 on the grid, uneven steps of 6 to 24 off it."""
    if grid:
        steps = int(round(abs(degrees) / 15.0))
        return [_act(Action.CAMERA_YAW, float(np.sign(degrees)))] * steps
    plan, left = [], abs(degrees)
    while left > 3.0:
        step = min(left, rng.uniform(6.0, 24.0))
        plan.append(_act(Action.CAMERA_YAW, float(np.sign(degrees)) * step / 15.0))
        left -= step
    return plan


def _walk(rng: Rng, grid: bool, steps: int) -> Plan:
    """Walk ahead (sometimes sideways or backwards); off the grid at uneven speed."""
    entry = rng.choice([Action.FORWARD, Action.LEFT, Action.RIGHT, Action.BACK], p=[0.82, 0.06, 0.06, 0.06])
    return [_act(Action(entry), 1.0 if grid else float(rng.uniform(0.5, 1.0))) for _ in range(steps)]


def _tilt(rng: Rng, grid: bool) -> Plan:
    """Look up or down and level again later (the reverse belongs to the plan)."""
    size = 1.0 if grid else float(rng.uniform(0.4, 1.4))
    plan = [_act(Action.CAMERA_PITCH, size * float(rng.choice([-1, 1])))] * int(rng.integers(1, 3))
    return [*plan, *[_act()] * int(rng.integers(0, 4)), *_reverse(plan)]


_OPPOSITE = {
    Action.FORWARD: Action.BACK,
    Action.BACK: Action.FORWARD,
    Action.LEFT: Action.RIGHT,
    Action.RIGHT: Action.LEFT,
}


def _reverse(plan: Plan) -> Plan:
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


def _beside(rng: Rng, grid: bool, share: float) -> Plan:
    """With probability `share` a step aside, off the grid turned a little: the way back is near, not exact."""
    if share <= 0.0 or rng.random() >= share:
        return []
    entry = Action(rng.choice([Action.FORWARD, Action.BACK, Action.LEFT, Action.RIGHT]))
    plan = [_act(entry)] * int(rng.integers(1, 5))
    return plan if grid else [*plan, _act(Action.CAMERA_YAW, float(rng.uniform(-0.8, 0.8)))]


def _leg(rng: Rng, grid: bool, steps: int, wander: float = 40.0) -> Plan:
    """Walk `steps` steps in stretches, with small turns between."""
    plan: Plan = []
    while steps > 0:
        stretch = min(steps, int(rng.integers(3, 13)))
        plan += _walk(rng, grid, stretch)
        steps -= stretch
        if rng.random() < 0.6:
            plan += _turn(rng, grid, rng.normal(0.0, wander))
    return plan


def _about_face(rng: Rng, grid: bool) -> Plan:
    return _turn(rng, grid, 180.0 * float(rng.choice([-1, 1])))


def _aim(rng: Rng, grid: bool) -> Plan:
    """Look down to the ground in reach (30 or 45 degrees on level ground) or at what stands a little higher (15)."""
    steps = int(rng.choice([1, 2, 3], p=[0.2, 0.5, 0.3]))
    return [_act(Action.CAMERA_PITCH, 1.0 if grid else float(rng.uniform(0.7, 1.3))) for _ in range(steps)]


def _hand(rng: Rng, grid: bool) -> Plan:
    """Break or place once or a few times, looking at the result in between."""
    plan: Plan = []
    entry = Action(rng.choice([Action.ATTACK, Action.PLACE], p=[0.45, 0.55]))  # places fail more often
    for i in range(int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))):
        if i and rng.random() < 0.5:
            plan += _turn(rng, grid, float(rng.choice([-1, 1])) * 15.0)
        plan += [_act(entry), *[_act()] * int(rng.integers(0, 3))]
    return plan


def _absence(rng: Rng, grid: bool, frames: int, more: bool) -> Plan:
    """Look about for at least so many frames, sometimes (with `more`) edit here, too; ends where it began."""
    plan = _edit(rng, grid, 0.0, more=False) if more and rng.random() < 0.3 else []
    while len(plan) < frames:
        swing = _turn(rng, grid, float(rng.choice([-1, 1])) * rng.uniform(15.0, 45.0))
        plan += [*swing, *[_act()] * int(rng.integers(0, 4)), *_reverse(swing)]
    return plan


def _around(rng: Rng, grid: bool) -> Plan:
    """Walk some way around a place in reach, with the eyes on it, and back: seen from other sides."""
    side = float(rng.choice([-1, 1]))
    step = _act(Action.LEFT if side > 0 else Action.RIGHT)
    # WALK_SPEED blocks sideways around a place two to four blocks away.
    step[Action.CAMERA_YAW] = side * np.degrees(WALK_SPEED / rng.uniform(2.0, 4.0)) / CAMERA_STEP_DEGREES
    plan = [step] * int(rng.integers(2, 10))
    if grid:  # turns of 15 degrees after every one or two steps
        stride, turned = _act(Action.LEFT if side > 0 else Action.RIGHT), _act(Action.CAMERA_YAW, side)
        plan = [stride, turned] * int(rng.integers(1, 5)) if rng.random() < 0.5 else [stride, stride, turned] * 2
    return [*plan, *[_act()] * int(rng.integers(0, 3)), *_reverse(plan)]


def _edit(rng: Rng, grid: bool, beside: float, more: bool = True) -> Plan:
    """Change a block in reach, look at it, go or turn away, come back the same way and look again.

    In 60 % of the cases the place is out of sight for 30 frames or more. A share `beside` of the returns ends beside
    the first pose, and as many players walk around the place.
    """
    aim, hand = _aim(rng, grid), _hand(rng, grid)
    level = rng.random() < 0.5  # most of the ground in reach is in view with level eyes, too
    leave = _turn(rng, grid, float(rng.choice([-1, 1])) * rng.uniform(100.0, 180.0))
    if rng.random() < 0.5:
        leave += _leg(rng, grid, int(rng.integers(4, 16)))
    elif rng.random() < 0.4:  # walk backwards first: the edit is seen from afar
        leave = [*[_act(Action.BACK)] * int(rng.integers(4, 16)), *leave]
    frames = int(rng.integers(30, 70)) if more and rng.random() < 0.6 else int(rng.integers(0, 10))
    away = [*leave, *_absence(rng, grid, frames, more), *_reverse(leave)]
    look = [*_beside(rng, grid, beside), *[_act()] * int(rng.integers(1, 5))]
    again = [*look, *(_around(rng, grid) if rng.random() < beside else [])]
    if level:
        return [*aim, *hand, *_reverse(aim), *away, *look, *aim, *again, *_reverse(aim)]
    return [*aim, *hand, *away, *again, *_reverse(aim)]


def _contact(rng: Rng, grid: bool) -> Plan:
    """Turn anywhere, then keep walking whatever is in the way: sometimes diagonally, jumping, or with tilted eyes."""
    entry = Action(rng.choice([Action.FORWARD, Action.LEFT, Action.RIGHT, Action.BACK], p=[0.82, 0.06, 0.06, 0.06]))
    drift = Action(rng.choice([Action.LEFT, Action.RIGHT])) if rng.random() < 0.2 else None
    jumps, speed = rng.random() < 0.2, 1.0 if grid else float(rng.uniform(0.5, 1.0))
    steps: Plan = []
    for _ in range(int(rng.integers(4, 24))):
        step = _act(entry, speed)
        if drift is not None:
            step[drift] = speed
        step[Action.JUMP] = float(jumps and rng.random() < 0.25)
        if rng.random() < 0.05:
            step[Action.CAMERA_YAW] = float(rng.choice([-1, 1])) * (1.0 if grid else float(rng.uniform(0.2, 1.5)))
        steps.append(step)
    tilt = _tilt(rng, grid) if rng.random() < 0.15 else []
    half = len(tilt) // 2
    return [*_turn(rng, grid, rng.normal(0.0, 60.0)), *tilt[:half], *steps, *tilt[half:]]


def _macro(rng: Rng, grid: bool, kind: str, beside: float) -> Plan:
    side = float(rng.choice([-1, 1]))
    if kind == "edit":
        approach = [*_turn(rng, grid, rng.normal(0.0, 50.0)), *_leg(rng, grid, int(rng.integers(2, 10)))]
        return [*(approach if rng.random() < 0.7 else []), *_edit(rng, grid, beside)]
    if kind == "contact":
        return _contact(rng, grid)
    if kind == "turn_away":
        away = _turn(rng, grid, side * rng.uniform(45.0, 180.0))
        return [*away, *[_act()] * int(rng.integers(0, 6)), *_beside(rng, grid, beside), *_reverse(away)]
    if kind == "aba":
        out = _leg(rng, grid, int(rng.integers(6, 36)))
        rest = _macro(rng, grid, "look360", beside) if rng.random() < 0.3 else []
        rest += _beside(rng, grid, beside)
        if rng.random() < 0.5:
            return [*out, *rest, *_reverse(out)]
        return [*out, *rest, *_about_face(rng, grid), *_walk_back(out), *_about_face(rng, grid)]
    if kind == "abca":
        first, second = _leg(rng, grid, int(rng.integers(6, 20))), _leg(rng, grid, int(rng.integers(6, 20)))
        turn = _turn(rng, grid, side * rng.uniform(60.0, 120.0))
        return [*first, *turn, *second, *_beside(rng, grid, beside), *_reverse([*first, *turn, *second])]
    if kind == "look360":
        return _turn(rng, grid, side * 360.0)
    if kind == "loop":
        edge, corner = int(rng.integers(4, 16)), _turn(rng, grid, side * 90.0)
        return [action for _ in range(4) for action in [*_walk(rng, grid, edge), *corner]]
    plan = [*_turn(rng, grid, rng.normal(0.0, 70.0)), *_leg(rng, grid, int(rng.integers(4, 24)))]
    if rng.random() < 0.25:
        plan += _tilt(rng, grid)
    if rng.random() < 0.1:
        plan.append(_act(Action.JUMP))
    return plan


def _walk_back(out: Plan) -> Plan:
    """The way back seen from the other side: the same steps forward, turns mirrored, last first."""
    result = []
    for action in reversed(out):
        undone = action.copy()
        undone[Action.CAMERA_YAW] = -action[Action.CAMERA_YAW]
        result.append(undone)
    return result


def _slowed(plan: Plan, factor: float) -> Plan:
    """The same turns and steps, each spread over about `factor` frames; a jump or a hand stays one action."""
    count = max(1, round(factor))
    result = []
    for action in plan:
        part = action.copy()
        part[_MOTION] /= count
        once = np.delete(action, _MOTION)
        result += [action] if once.any() or not action.any() else [part] * count
    return result


def _plan(rng: Rng, length: int, kind: str, grid: bool, slow: float, beside: float) -> NDArray[np.float32]:
    plan: Plan = [_act()]
    # Most of a person's mouse movements are far below the 15 degrees of a key press.
    factor = float(np.exp(rng.uniform(0.0, np.log(SLOWEST)))) if slow > 0.0 and rng.random() < slow else 1.0
    while len(plan) < length:
        choice = str(rng.choice(_MIXED, p=[0.3, 0.16, 0.22, 0.12, 0.1, 0.1])) if kind == "mixed" else kind
        part = _macro(rng, grid, choice, beside)
        plan += part if factor == 1.0 else _slowed(part, factor)
        if kind != "mixed" and rng.random() < 0.5:
            plan += _macro(rng, grid, "explore", beside)
        if rng.random() < 0.2:
            plan += [_act()] * int(rng.integers(1, 4))
    return np.stack(plan[:length])


def smooth_jitter(rng: Rng, frames: int, scale: float, every: float = 12) -> NDArray[np.float64]:
    """Random offsets within +-scale that wander slowly: new values every `every` frames, joined by lines, [frames]."""
    knots = rng.uniform(-scale, scale, int(frames // every) + 2)
    return np.interp(np.arange(frames) / every, np.arange(len(knots)), knots)


def _unsteady(rng: Rng, length: int) -> NDArray[np.float64]:
    """Degrees of pitch and yaw by which eyes wander on a walk, [length, 2]: slowly or fast, a little or a lot."""
    found = []
    for least, most in _WANDER:
        scale = np.exp(rng.uniform(np.log(least), np.log(most)))
        every = np.exp(rng.uniform(np.log(4.0), np.log(40.0)))
        found.append(smooth_jitter(rng, length, scale, every))
    return np.stack(found, -1)


def sample_trajectories(
    worlds: Sequence[World],
    length: int,
    rng: Rng,
    kind: str = "mixed",
    grid: bool = True,
    candidates: int = 3,
    slow: float = 0.0,
    beside: float = 0.0,
    tilted: float = 0.0,
    unsteady: float = 0.0,
) -> Trajectories:
    """Draw one walk per world.

    Args:
        worlds: N worlds; none is changed.
        length: Frames T of each walk.
        rng: Source of randomness.
        kind: One of `KINDS`, or `mixed` (all but `edit` and `contact`).
        grid: Angles in steps of 15 degrees and full steps; False draws uneven angles and speeds.
        candidates: Plans drawn for each walk; the one that covers the most ground for its effort wins (of `edit`, the
            share of its breaks and places that change a block counts as much; of `contact`, the one that walls
            hold back in about a third of its steps).
        slow: Share of plans off the grid whose turns and steps take up to `SLOWEST` times as many frames.
        beside: Share of returns that come back beside the way out (0.4 to 1.7 blocks, up to 12 degrees off the grid),
            and of returns to an edit that walk around it.
        tilted: Share of walks that begin looking up or down, and keep so (not of `edit`, whose scripts aim).
        unsteady: Share of walks whose eyes wander all the way, up and down and to the sides (not of `edit`).

    Returns:
        Actions, poses and edits; starts are the spawn moved to dry open ground nearby.

    Raises:
        ValueError: Unknown kind.
    """
    if kind not in (*KINDS, "mixed"):
        raise ValueError(f"unknown trajectory kind {kind!r}: expected one of {', '.join((*KINDS, 'mixed'))}")
    n = len(worlds)
    share = 0.0 if grid else slow
    plans = np.stack([_plan(rng, length, kind, grid, share, beside) for _ in range(n * candidates)])
    starts = np.stack([random_start(worlds[i // candidates], rng, grid) for i in range(n * candidates)])
    if tilted > 0.0 and kind != "edit":
        angles = rng.normal(0.0, 18.0, len(starts)).clip(-45.0, 45.0)
        starts[:, 3] = np.where(
            rng.random(len(starts)) < tilted, 15.0 * np.round(angles / 15.0) if grid else angles, 0.0
        )
    if unsteady > 0.0 and kind != "edit":
        for i in np.flatnonzero(rng.random(len(plans)) < unsteady):
            eyes = _unsteady(rng, length)
            starts[i, 3:] += eyes[0]
            turns = [Action.CAMERA_PITCH, Action.CAMERA_YAW]
            plans[i, 1:, turns] += np.diff(eyes, axis=0).T / CAMERA_STEP_DEGREES
    index = np.arange(n * candidates) // candidates
    if kind == "edit":
        poses, edits = _walk_editing(worlds, index, starts, plans)
    else:
        poses, edits = walk(worlds, index, starts, plans), [no_edits()] * len(plans)
    wanted = np.abs(plans[:, 1:, [Action.FORWARD, Action.BACK, Action.LEFT, Action.RIGHT]]).max(-1).sum(-1)
    moved = np.linalg.norm(np.diff(poses[:, :, [0, 2]], axis=1), axis=-1).sum(-1)
    score = moved / np.maximum(wanted, 1.0)
    if kind == "contact":
        score = -np.abs(1.0 - score / WALK_SPEED - _CONTACT)
    if kind == "edit":
        tried = (plans[:, :, [Action.ATTACK, Action.PLACE]] > 0.5).sum((1, 2))
        score += np.array([len(made) for made in edits]) / np.maximum(tried, 1)
    best = np.arange(n) * candidates + score.reshape(n, candidates).argmax(1)
    return Trajectories(plans[best], poses[best], [kind] * n, [edits[i] for i in best])


def walk(
    worlds: Sequence[World], index: NDArray[np.integer], starts: NDArray[np.float64], actions: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Run action scripts through the simulator: frame 0 is the start, action t leads to frame t.

    Args:
        worlds: Worlds, shared and unchanged (scripts neither place nor break).
        index: int [N], the world of each walker.
        starts: float64 [N, 5].
        actions: float32 [N, T, 25].

    Returns:
        Poses, float64 [N, T, 5].
    """
    simulator = Simulator.shared(worlds, index, starts)
    poses = np.empty((*actions.shape[:2], 5))
    poses[:, 0] = simulator.poses
    poses[:, 1:] = simulator.walk(actions[:, 1:].swapaxes(0, 1)).swapaxes(0, 1)
    return poses


def _walk_editing(
    worlds: Sequence[World], index: NDArray[np.integer], starts: NDArray[np.float64], actions: NDArray[np.float32]
) -> tuple[NDArray[np.float64], list[Edits]]:
    """As `walk`, every walker in a copy of its world that it may change; also returns what each changed, [E, 5]."""
    simulator = Simulator([worlds[int(i)] for i in index], starts)
    poses = np.empty((*actions.shape[:2], 5))
    poses[:, 0] = simulator.poses
    made: list[list[tuple[int, ...]]] = [[] for _ in index]
    for t in range(1, actions.shape[1]):
        known = len(simulator.edits)
        poses[:, t] = simulator.step(actions[:, t])
        for edit in simulator.edits[known:]:
            made[edit.player].append((t, edit.x, edit.z, edit.y, edit.block))
    return poses, [np.array(rows, np.int32).reshape(-1, 5) for rows in made]


def random_start(world: World, rng: Rng, grid: bool = True) -> NDArray[np.float64]:
    """A pose on dry open ground within 60 blocks of the middle; yaw on the grid of 15 degrees or anywhere."""
    for _ in range(64):
        x, z = (int(v) for v in rng.integers(68, 188, 2))
        y = world.ground(x, z)
        if y is not None:
            yaw = 15.0 * rng.integers(24) if grid else rng.uniform(0.0, 360.0)
            jitter = (0.5, 0.5) if grid else rng.uniform(0.35, 0.65, 2)
            return np.array([x + jitter[0], y, z + jitter[1], 0.0, float(wrap_degrees(yaw))])
    return world.spawn.copy()
