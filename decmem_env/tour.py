"""A tour of the neighbourhood: the walk of true frames that makes a model know more than one spot of a world.

Whoever looks around once knows one place; two blocks beside it nearly all is imagined. A tour looks around, walks out
in several directions as far as the ground lets it, looks around on the way, and comes home each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .conventions.actions import Action, noop, press
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
_RIGHT, _AHEAD = press(Action.CAMERA_YAW), press(Action.FORWARD)


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
    plan = [noop(), *[_RIGHT] * ROUND]
    here, facing, free = np.array(pose, np.float64), 0, np.ones(ROUND, np.bool_)
    while len(plan) + SPOKE <= frames:
        reach, ends = _ways(world, here)
        best = int(np.where(free, reach, 0.0).argmax())
        if not free[best] or reach[best] < _REACH:
            break
        plan += _turns(best - facing)
        leg = [_AHEAD] * _LEG + [_RIGHT] * ROUND
        plan += leg * _LEGS + [_RIGHT] * (ROUND // 2) + [_AHEAD] * (_LEG * _LEGS)
        facing, here[:3] = best + ROUND // 2, ends[best]
        free[np.arange(best - _APART + 1, best + _APART) % ROUND] = False
    plan += _turns(-facing)
    return np.stack(plan[:frames])


def tour_of_length(world: World, pose: NDArray[np.float64], frames: int) -> NDArray[np.float32]:
    """`plan_tour` after as many no-ops as it lacks, float32 [frames, 25]."""
    tour = plan_tour(world, pose, frames)
    return np.concatenate([np.repeat(noop()[None], frames - len(tour), 0), tour])


def _ways(world: World, pose: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each heading leads, [24] by turns from a pose's (0: not home again), and where it ends, [24, 3]."""
    starts = np.repeat(pose[None], ROUND, 0)
    starts[:, 4] = wrap_degrees(pose[4] + _TURN * np.arange(ROUND))
    simulator = Simulator.shared([world], np.zeros(ROUND, np.int64), starts)
    ahead = np.repeat(np.stack([_AHEAD] * (_LEG * _LEGS))[:, None], ROUND, 1)
    there = simulator.walk(ahead)[-1]
    for player, back in enumerate(there):
        simulator.teleport(player, [*back[:4], float(wrap_degrees(back[4] + 180.0))])
    ends = simulator.walk(ahead)[-1, :, :3]
    home = np.linalg.norm(ends - pose[:3], axis=1) <= _HOME
    return np.where(home, np.linalg.norm(there[:, :3] - pose[:3], axis=1), 0.0), ends


def _turns(count: int) -> list[NDArray[np.float32]]:
    """The shorter way round."""
    count = (count + ROUND // 2) % ROUND - ROUND // 2
    return [press(Action.CAMERA_YAW, float(np.sign(count)))] * abs(count)
