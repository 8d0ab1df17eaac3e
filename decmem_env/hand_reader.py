"""Which cells hands meet on walks whose poses are given: players who read the frames go along (`predicted_player`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model.changes import hands_used
from .predicted_player import PredictedPlayer, PredictedPoses
from .start import Start


class HandReader:
    """Players of n sessions that see what is shown, stand where the walk says, and know what their hands meet.

    What the true world holds never enters: only the frames of the contexts and the model's own.

    Args:
        model: A `WorldModel` with a pose predictor.
        starts: Contexts of the walks, with their frames.
        copies: Sessions of each start, one after the other.
    """

    def __init__(self, model: Any, starts: Iterable[Start], copies: int = 1) -> None:
        self._poses = PredictedPoses(model)
        self._players: list[PredictedPlayer] = []
        for start in starts:
            player = self._poses.begin(start)[1]
            self._players += [player, *(PredictedPlayer.restore(player.snapshot()) for _ in range(copies - 1))]

    @classmethod
    def where_needed(
        cls, model: Any, starts: Iterable[Start], actions: NDArray[np.float32], copies: int = 1
    ) -> HandReader | None:
        """A reader, if hands are used in the actions [..., 25] to come and the model can be told what they meet.

        The starts are not looked at otherwise.
        """
        tellable = model.config.voxel_hands and model.pose_predictor is not None
        used = hands_used(actions.reshape(-1, actions.shape[-1])).any()
        return cls(model, starts, copies) if tellable and used else None

    def act(self, actions: NDArray[np.float32], poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Let the hands act in frames with actions [n, F, 25] and poses [n, F, 5].

        Returns:
            The cells that they change, float64 [n, F, 3], NaN where none is known.
        """
        found = [self._poses.follow(self._players, actions[:, t], poses[:, t]) for t in range(actions.shape[1])]
        return np.stack(found, 1)

    def see(self, sessions: Sequence[Any]) -> None:
        """Look at the newest frame of each session."""
        self._poses.observe(self._players, sessions)
