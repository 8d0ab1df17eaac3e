"""Tasks: vectorised pure functions (frames, poses, actions, state) -> (rewards, terminated, state).

The same functions serve the dream and the true world, one row or many. A state is a dictionary of arrays whose first
axis is the row; `begin` makes the state of one row, `stack` and `unstack` move between the two. No task looks at
pixels: what an agent is paid for is its pose, and `info["pose_source"]` says where that comes from. `terminated` means
success; time limits are the environment's.

| task | reward of a step | terminated |
|---|---|---|
| `reach_landmark` | last cost - cost, and 1 on arrival | distance to the landmark <= 3 blocks |
| `return_home` | 1 on arrival, else 0 | within 1 block and 20 degrees of the start after > 6 blocks away |
| `explore` | 0.1 for every step into a cell of 2x2 blocks not entered before | never |

The cost of `reach_landmark` is distance / 10 blocks + |bearing| / 180 degrees: potential-based shaping, which changes
no optimal policy. Its distances and that of "away" are horizontal; the arrival at home counts height as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .conventions.poses import pose_difference, wrap_degrees

Float = NDArray[np.float64]
State = dict[str, NDArray[Any]]
Outcome = tuple[Float, NDArray[np.bool_], State]

REACH_DISTANCE = 3.0  # blocks
PROGRESS_SCALE = 10.0  # blocks of progress that are worth a reward of 1
FURTHEST_GOAL = 4.0  # in units of 20 blocks
BEARING_SCALE = 180.0  # degrees of turning that are worth a reward of 1
HOME_DISTANCE, HOME_ANGLE, AWAY_DISTANCE = 1.0, 20.0, 6.0
CELL = 2.0  # blocks
NEW_CELL_REWARD = 0.1
_CELLS = 256  # the map of visited cells repeats after 512 blocks, further than an episode goes


class Task(Protocol):
    """What an environment needs of a task."""

    name: str
    has_goal: bool
    needs_landmark: bool

    def begin(self, pose: ArrayLike, landmark: ArrayLike | None) -> State:
        """State of one row that starts at `pose` [5]; `landmark` is float64 [3] or None."""
        ...

    def step(self, frames: NDArray[np.uint8], poses: Float, actions: NDArray[np.float32], state: State) -> Outcome:
        """Rewards float64 [n], terminated bool [n] and the next state, after a step to `poses` [n, 5]."""
        ...

    def goal(self, poses: Float, state: State) -> NDArray[np.float32]:
        """Goal vectors float32 [n, 3] for the observation mode `frame_goal`."""
        ...


class ReachLandmark:
    """Walk to a landmark 8 to 14 blocks away, within 60 degrees of the first view's centre."""

    name = "reach_landmark"
    has_goal = True
    needs_landmark = True

    def begin(self, pose: ArrayLike, landmark: ArrayLike | None) -> State:
        """Remember the landmark and how far it is."""
        if landmark is None:
            raise ValueError(
                "task 'reach_landmark' needs a voxel world to start from: a clip or image has no landmarks"
            )
        target = np.asarray(landmark, np.float64)[None]
        return {"target": target, "cost": _cost(np.asarray(pose, np.float64)[None], target)}

    def step(self, frames: NDArray[np.uint8], poses: Float, actions: NDArray[np.float32], state: State) -> Outcome:
        """Pay progress and arrival."""
        cost = _cost(poses, state["target"])
        arrived = _flat_distance(poses, state["target"]) <= REACH_DISTANCE
        return state["cost"] - cost + arrived, arrived, {**state, "cost": cost}

    def goal(self, poses: Float, state: State) -> NDArray[np.float32]:
        """Direction and distance of the landmark."""
        return goal_vector(poses, state["target"])


class ReturnHome:
    """Go away, then come back to the first pose: only memory knows what it looked like."""

    name = "return_home"
    has_goal = True
    needs_landmark = False

    def begin(self, pose: ArrayLike, landmark: ArrayLike | None) -> State:
        """Remember the start."""
        return {"home": np.array(pose, np.float64)[None], "away": np.zeros(1, np.bool_)}

    def step(self, frames: NDArray[np.uint8], poses: Float, actions: NDArray[np.float32], state: State) -> Outcome:
        """Pay the return once the start was left."""
        home = state["home"]
        away = state["away"] | (_flat_distance(poses, home) > AWAY_DISTANCE)
        distance, angle = pose_difference(poses, home)
        arrived = state["away"].astype(bool) & (distance <= HOME_DISTANCE) & (angle <= HOME_ANGLE)
        return arrived.astype(np.float64), arrived, {**state, "away": away}

    def goal(self, poses: Float, state: State) -> NDArray[np.float32]:
        """Direction and distance of the start."""
        return goal_vector(poses, state["home"])


class Explore:
    """Enter as many new cells as possible."""

    name = "explore"
    has_goal = False
    needs_landmark = False

    def begin(self, pose: ArrayLike, landmark: ArrayLike | None) -> State:
        """Mark the first cell as known."""
        visited = np.zeros((1, _CELLS, _CELLS), np.bool_)
        cells = (np.zeros(1, np.int64), *_cells(np.asarray(pose)[None]))
        visited[cells] = True
        return {"visited": visited}

    def step(self, frames: NDArray[np.uint8], poses: Float, actions: NDArray[np.float32], state: State) -> Outcome:
        """Pay cells that were not known."""
        where = (np.arange(len(poses)), *_cells(poses))
        visited = state["visited"].copy()
        rewards = NEW_CELL_REWARD * ~visited[where].astype(bool)
        visited[where] = True
        return rewards, np.zeros(len(poses), np.bool_), {"visited": visited}

    def goal(self, poses: Float, state: State) -> NDArray[np.float32]:
        """There is none."""
        raise ValueError("task 'explore' has no goal: use obs_mode 'frame' or 'frame_pose'")


_TASKS: dict[str, type[ReachLandmark] | type[ReturnHome] | type[Explore]] = {
    task.name: task for task in (ReachLandmark, ReturnHome, Explore)
}
TASKS = tuple(_TASKS)


def make_task(name: str | None) -> Task | None:
    """Look a task up by name; None is the free world, whose reward is 0.

    Raises:
        ValueError: Unknown name; the known ones are listed.
    """
    if name is None:
        return None
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)} or None")
    return _TASKS[name]()


def goal_vector(poses: ArrayLike, targets: ArrayLike) -> NDArray[np.float32]:
    """Where targets lie as seen from poses.

    Args:
        poses: [n, 5].
        targets: [n, 3 or more], x, y, z first.

    Returns:
        float32 [n, 3]: horizontal distance / 20 blocks (at most 4), sine and cosine of the bearing (0 is straight
        ahead, right is positive).
    """
    seen, target = np.asarray(poses, np.float64), np.asarray(targets, np.float64)
    bearing = np.radians(_bearing(seen, target))
    distance = np.minimum(_flat_distance(seen, target) / 20.0, FURTHEST_GOAL)
    return np.stack([distance, np.sin(bearing), np.cos(bearing)], -1).astype(np.float32)


def stack(states: Sequence[State]) -> State:
    """Join the states of rows along the first axis."""
    return {key: np.concatenate([state[key] for state in states]) for key in states[0]}


def unstack(state: State) -> list[State]:
    """Split a state into the states of its rows."""
    count = len(next(iter(state.values())))
    return [{key: value[i : i + 1].copy() for key, value in state.items()} for i in range(count)]


def _flat_distance(poses: ArrayLike, targets: ArrayLike) -> Float:
    difference = np.asarray(poses, np.float64)[..., :3] - np.asarray(targets, np.float64)[..., :3]
    return np.hypot(difference[..., 0], difference[..., 2])


def _bearing(poses: Float, targets: Float) -> Float:
    """Degrees by which targets lie right (+) or left (-) of straight ahead."""
    heading = np.degrees(np.arctan2(poses[..., 0] - targets[..., 0], targets[..., 2] - poses[..., 2]))
    return wrap_degrees(heading - poses[..., 4])


def _cost(poses: Float, targets: Any) -> Float:
    return _flat_distance(poses, targets) / PROGRESS_SCALE + np.abs(_bearing(poses, targets)) / BEARING_SCALE


def _cells(poses: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    cells = np.floor(poses[:, [0, 2]] / CELL).astype(np.int64) % _CELLS
    return cells[:, 0], cells[:, 1]
