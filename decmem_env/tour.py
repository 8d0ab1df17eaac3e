"""A tour of the neighbourhood: the walk of true frames that makes a model know more than one spot of a world.

Whoever looks around once knows one place; two blocks beside it nearly all is imagined. A tour looks around, walks out
in several directions as far as the ground lets it, looks around on the way, and comes home each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .conventions.actions import Action, noop
from .conventions.poses import wrap_degrees
from .worlds import Simulator, World

TOUR = "tour"  # in place of an action string
FRAMES = 540  # of a tour with four ways out
ROUND = 24  # turns of 15 degrees
_TURN = 360.0 / ROUND
_LEG = 14  # walking steps from one look around to the next, about 6 blocks
_LEGS = 2  # of each way out
SPOKE = _LEGS * (2 * _LEG + ROUND) + 2 * ROUND  # frames of a way out and back with its turns, at most
SHORTEST = 1 + ROUND + SPOKE  # frames of a tour with one way out
_HOME = 0.5  # blocks; a way that ends further from where it began is none
_REACH = 3.0  # blocks; a way that leads less far shows little that is new
_APART = 4  # turns of 15 degrees between two ways out, at least


def plan_tour(world: World, pose: NDArray[np.float64], frames: int) -> NDArray[np.float32]:
    """Actions of a tour, which ends where it began, to half a block for each way out, with the same heading.

    All 24 headings are tried in the world; the ways that get furthest are taken.

    Args:
        world: Where.
        pose: float64 [5], start of the tour.
        frames: Length at most.

    Returns:
        float32 [T, 25] with T <= frames, the first does nothing.
    """
    plan = [noop(), *[_turn(1)] * ROUND][: max(frames, 1)]
    here, taken, facing = np.array(pose, np.float64), np.zeros(0, np.int64), 0
    while len(plan) + SPOKE <= frames:
        headings, reach, ends = _ways(world, here)
        free = np.array([_headings_apart(heading, taken) >= _APART for heading in headings])
        reach = np.where(free, reach, 0.0)
        if reach.max() < _REACH:
            break
        best = int(reach.argmax())
        plan += _turns(int(headings[best]) - facing)
        leg = [_walk()] * _LEG + [_turn(1)] * ROUND
        plan += leg * _LEGS + [_turn(1)] * (ROUND // 2) + [_walk()] * (_LEG * _LEGS)
        facing = int(headings[best]) + ROUND // 2
        here[:3] = ends[best]
        taken = np.append(taken, headings[best])
    plan += _turns(-facing)
    return np.stack(plan[:frames])


def _ways(
    world: World, pose: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Every heading int64 [24] in turns from a pose's, how far it leads [24] (0: not home again), and ends [24, 3]."""
    headings = np.arange(ROUND)
    starts = np.repeat(pose[None], ROUND, 0)
    starts[:, 4] = wrap_degrees(pose[4] + _TURN * headings)
    simulator = Simulator.shared([world], np.zeros(ROUND, np.int64), starts)
    ahead = np.repeat(np.stack([_walk()] * (_LEG * _LEGS))[:, None], ROUND, 1)
    there = simulator.walk(ahead)[-1, :, :3]
    for player in range(ROUND):
        back = simulator.poses[player].copy()
        back[4] = wrap_degrees(back[4] + 180.0)
        simulator.teleport(player, back)
    ends = simulator.walk(ahead)[-1, :, :3]
    home = np.linalg.norm(ends - pose[:3], axis=1) <= _HOME
    return headings, np.where(home, np.linalg.norm(there - pose[:3], axis=1), 0.0), ends


def _headings_apart(heading: int, others: NDArray[np.int64]) -> int:
    """Turns to the nearest of other headings; a whole round without any."""
    if not len(others):
        return ROUND
    away = np.abs(heading - others) % ROUND
    return int(np.minimum(away, ROUND - away).min())


def _turns(count: int) -> list[NDArray[np.float32]]:
    """The shorter way round."""
    count = (count + ROUND // 2) % ROUND - ROUND // 2
    return [_turn(np.sign(count))] * abs(count)


def _turn(side: float) -> NDArray[np.float32]:
    vector = noop()
    vector[Action.CAMERA_YAW] = side
    return vector


def _walk() -> NDArray[np.float32]:
    vector = noop()
    vector[Action.FORWARD] = 1.0
    return vector
