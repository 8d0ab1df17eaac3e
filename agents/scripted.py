"""Players that need no training: the floor (no-op, random) and the ceiling (scripts that know the goal)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import DISCRETE_ACTIONS, parse_action_string

NOOP, FORWARD = DISCRETE_ACTIONS.index("noop"), DISCRETE_ACTIONS.index("forward")
TURN_LEFT, TURN_RIGHT = DISCRETE_ACTIONS.index("turn_left"), DISCRETE_ACTIONS.index("turn_right")
_AIM = 8.0  # degrees off the goal before turning; a turn is 15


class Player(Protocol):
    """Chooses discrete actions for a batch of episodes."""

    def act(self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]) -> Any:
        """Actions int [n].

        Args:
            observations: One observation an episode.
            steps: Steps each episode has had.
            generators: One source of randomness an episode, so that its luck does not depend on the batch.
        """
        ...


class NoopPlayer:
    """Stands still."""

    def act(
        self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """No-ops."""
        return np.full(len(observations), NOOP)


class RandomPlayer:
    """Draws each action from all twelve alike."""

    def act(
        self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Uniform actions."""
        return np.array([int(rng.integers(len(DISCRETE_ACTIONS))) for rng in generators])


class GoalPlayer:
    """Turns towards the goal of `obs_mode="frame_goal"` and walks straight on: the oracle of `reach_landmark`."""

    def act(
        self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """Turn or walk."""
        goals = np.stack([observation["goal"] for observation in observations])
        bearing = np.degrees(np.arctan2(goals[:, 1], goals[:, 2]))
        return np.where(bearing > _AIM, TURN_RIGHT, np.where(bearing < -_AIM, TURN_LEFT, FORWARD))


class ScriptPlayer:
    """Plays an action string over and over.

    Args:
        script: See `conventions.actions.parse_action_string`; single keys of the discrete actions.

    Raises:
        ValueError: A step that no discrete action makes.
    """

    def __init__(self, script: str) -> None:
        from ..conventions.actions import discrete_to_vector

        known = {discrete_to_vector(i).tobytes(): i for i in range(len(DISCRETE_ACTIONS))}
        rows = parse_action_string(script)
        unknown = [t for t, row in enumerate(rows) if row.tobytes() not in known]
        if unknown:
            raise ValueError(f"script {script!r}: step {unknown[0]} is no single discrete action")
        self._actions = [known[row.tobytes()] for row in rows]

    def act(
        self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]
    ) -> NDArray[np.int64]:
        """The script's next actions."""
        return np.array([self._actions[step % len(self._actions)] for step in steps])


def oracle(task: str) -> Player:
    """The scripted player of a task.

    Raises:
        ValueError: A task without one.
    """
    if task == "reach_landmark":
        return GoalPlayer()
    if task == "return_home":
        return ScriptPlayer("W*18 S*18")  # out and back along the same line; fails where something stands in the way
    if task == "explore":
        return ScriptPlayer("W*24 R*3 W*24 R*3 W*24 L*4")
    raise ValueError(f"no scripted player for task {task!r}: expected reach_landmark, return_home or explore")
