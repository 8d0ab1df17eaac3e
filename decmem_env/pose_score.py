"""How far poses from the model drift from the true physics, beside dead reckoning: `decmem pose`.

The walks look around once, as every start in a voxel world does, and then run into walls (trajectory kind `contact`);
every method gets the start and the actions. `true`: the model sees true frames; `dream`: it observed the true walk and
dreams it anew from its start, and the map of blocks, empty at first, sees dreamed latents only. `open`: frames from the
true poses, and the errors of the predicted steps add up; `closed`: frames from the predicted poses, where a wall that
was missed leads elsewhere. `kinematic`: dead reckoning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .conventions.actions import noop, parse_action_string
from .conventions.poses import integrate_kinematic
from .predicted_player import PredictedPlayer, PredictedPlayers
from .results import Record, record
from .scene import LOOK_AROUND
from .worlds import Renderer, Simulator, World, generate_world, sample_trajectories
from .worlds.player import GRAVITY

METHODS = ("true_open", "true_closed", "dream_open", "dream_closed")
LEAST_CONTACT = 0.2
MOST_ERROR = 1.0  # blocks
LEAST_GAIN = 2.0  # of dead reckoning's error over the predictor's
_TOUCH = 1e-3  # blocks; a step that differs more from dead reckoning was changed by the world
_TRIES = 16
_CANDIDATES = 6

Progress = Callable[[int], None]
Look = Callable[[int, NDArray[np.float64]], torch.Tensor]  # (t, poses [n, 5]) -> latents [n, C, h, w]


@dataclass(frozen=True, eq=False)
class Walks:
    """Scripted walks under the true physics.

    Attributes:
        worlds: One for each of n walks.
        actions: float32 [n, 1 + L + T, 25]; first the reset no-op, then L turns to look around, then the T steps that
            are scored.
        poses: float64 [n, 1 + L + T, 5].
        steps: T.
        contact: float64 [n], share of the T steps that a wall held back.
        changed: float64 [n], share of steps that the world changed: walls, steps, falls, water.
    """

    worlds: list[World]
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    steps: int
    contact: NDArray[np.float64]
    changed: NDArray[np.float64]


def contact_walks(seeds: Sequence[int], steps: int) -> Walks:
    """One walk in each world that walls hold back in at least a fifth of its steps.

    Args:
        seeds: Of the worlds, one walk each.
        steps: T.

    Raises:
        ValueError: In a world no such walk was found.
    """
    found: list[tuple[Any, ...]] = []
    for number, seed in enumerate(seeds):
        world, rng = generate_world(seed), np.random.default_rng([seed, steps])
        for _ in range(_TRIES):
            drawn = sample_trajectories([world], steps + 1, rng, "contact", bool(number % 2), _CANDIDATES)
            contact, changed = contact_shares(drawn.actions[0], drawn.poses[0])
            if contact >= LEAST_CONTACT and stands(world, drawn.poses[0, 0]):
                found.append((world, *_looking_around(drawn.actions[0], drawn.poses[0]), contact, changed))
                break
        else:
            raise ValueError(f"world {seed}: no walk of {steps} steps touches walls often enough: choose another seed")
    worlds, actions, poses, shares, others = zip(*found, strict=True)
    return Walks(list(worlds), np.stack(actions), np.stack(poses), steps, np.array(shares), np.array(others))


def stands(world: World, pose: NDArray[np.float64]) -> bool:
    """Whether a player stays there: one that hangs in the air cannot look around first."""
    simulator = Simulator([world])
    simulator.teleport(0, pose)
    for _ in range(2):  # a fall shows in the second tick
        rested = simulator.step(noop()[None])[0]
    return bool(np.abs(rested - pose).max() < _TOUCH)


def _looking_around(
    actions: NDArray[np.float32], poses: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A walk [T + 1] that first turns once around."""
    turns, turned = parse_action_string(LOOK_AROUND), [poses[0]]
    for action in turns:
        turned.append(integrate_kinematic(turned[-1], action))
    turned[-1] = poses[0]  # rounding
    return np.concatenate([actions[:1], turns, actions[1:]]), np.concatenate([turned, poses[1:]])


def contact_shares(actions: NDArray[np.float32], poses: NDArray[np.float64]) -> tuple[float, float]:
    """Shares of steps of a walk [T + 1] held back by walls or water, and changed by the world at all."""
    off = np.abs(poses[1:, :3] - integrate_kinematic(poses[:-1], actions[1:])[:, :3])
    return float((np.hypot(off[:, 0], off[:, 2]) > _TOUCH).mean()), float((off.max(-1) > _TOUCH).mean())


def reckoned(walks: Walks) -> NDArray[np.float64]:
    """Poses by dead reckoning from the start of each walk, float64 [n, 1 + L + T, 5]."""
    poses = [walks.poses[:, 0]]
    for t in range(1, walks.actions.shape[1]):
        poses.append(integrate_kinematic(poses[-1], walks.actions[:, t]))
    return np.stack(poses, 1)


class Scorer:
    """Predicts the poses of walks with one model.

    Args:
        model: A `WorldModel` with a pose predictor.
        walks: What is walked.
        progress: Called with the number of steps done since the last call.
        sampling: Arguments of `WorldModel.start`.
    """

    def __init__(self, model: Any, walks: Walks, progress: Progress, **sampling: Any) -> None:
        self.model, self.walks, self.progress, self.sampling = model, walks, progress, sampling
        self.players = PredictedPlayers(model.pose_predictor, model.device)
        config = model.config
        self._renderer = Renderer(config.height, config.frame_width, device=str(model.device))
        self._blocks = torch.from_numpy(np.stack([world.blocks for world in walks.worlds])).to(model.device)

    def run(self, method: str) -> NDArray[np.float64]:
        """Predicted poses of a method, float64 [n, 1 + L + T, 5]."""
        frames, loop = method.split("_")
        self._generated = [frames == "dream"] * len(self.walks.worlds)
        follow = self.open if loop == "open" else self.closed
        if frames == "true":
            return follow(self.true_latents)
        sessions = self._remembering()
        try:
            return follow(lambda t, poses: self._dreamed_latents(sessions, t, poses))
        finally:
            for session in sessions:
                session.close()

    def open(self, latents: Look) -> NDArray[np.float64]:
        """Frames at the true poses; the predicted changes add up."""
        walks = self.walks
        players = [PredictedPlayer(pose) for pose in walks.poses[:, 0]]
        total = [walks.poses[:, 0].copy()]
        for t in range(1, walks.actions.shape[1]):
            self.players.observe(players, latents(t - 1, walks.poses[:, t - 1]), self._generated)
            made = self.players.move(players, walks.actions[:, t])
            step = made - walks.poses[:, t - 1]
            total.append(np.concatenate([total[-1][:, :3] + step[:, :3], made[:, 3:]], 1))
            for i, player in enumerate(players):
                set_right(player, walks.poses[i, t - 1], made[i], walks.poses[i, t])
            self.progress(len(players))
        return np.stack(total, 1)

    def closed(self, latents: Look) -> NDArray[np.float64]:
        """Frames at the predicted poses."""
        players = [PredictedPlayer(pose) for pose in self.walks.poses[:, 0]]
        poses = [self.walks.poses[:, 0]]
        for t in range(1, self.walks.actions.shape[1]):
            self.players.observe(players, latents(t - 1, poses[-1]), self._generated)
            poses.append(self.players.move(players, self.walks.actions[:, t]))
            self.progress(len(players))
        return np.stack(poses, 1)

    def true_latents(self, t: int, poses: NDArray[np.float64]) -> torch.Tensor:
        """What the autoencoder makes of the true worlds seen from poses [n, 5]."""
        return self.model.autoencoder.encode(self._renderer.render(self._blocks, np.arange(len(poses)), poses).rgb)

    def _remembering(self) -> list[Any]:
        """Sessions that have observed the true walks."""
        sessions = []
        for i, poses in enumerate(self.walks.poses):
            session = self.model.start(seed=i, **self.sampling)
            film = self._renderer.render(self._blocks, np.full(len(poses), i), poses).rgb
            session.observe(film, self.walks.actions[i], poses)
            sessions.append(session)
        return sessions

    def _dreamed_latents(self, sessions: list[Any], t: int, poses: NDArray[np.float64]) -> torch.Tensor:
        """Dream the frame to which the actions at `t` led, from poses [n, 5]."""
        self.model.step(sessions, self.walks.actions[:, t, None], poses[:, None], decode=False)
        return torch.stack([session.pending.latents[-1] for session in sessions])


def set_right(
    player: PredictedPlayer, before: NDArray[np.float64], made: NDArray[np.float64], true: NDArray[np.float64]
) -> None:
    """Put a player onto the true pose after a step; a step that was right keeps its speed, else it is inferred."""
    rise = float(player.simulator.rise[0])
    if abs(made[1] - true[1]) > _TOUCH:
        standing = abs(true[1] - round(true[1])) < _TOUCH
        rise = 0.0 if standing else float(true[1] - before[1]) - GRAVITY
    player.place(true, rise)
    player.climb = float(true[1] - before[1])  # since the frame before, not since the step that was made


def errors(predicted: NDArray[np.float64], walks: Walks) -> NDArray[np.float64]:
    """Distances in blocks after each scored step, float64 [n, T], of poses float64 [n, 1 + L + T, 5]."""
    return np.linalg.norm(predicted[:, -walks.steps :, :3] - walks.poses[:, -walks.steps :, :3], axis=-1)


def records(walks: Walks, results: Mapping[str, NDArray[np.float64]], device: str) -> list[Record]:
    """The figures of the bar.

    Args:
        walks: What was walked.
        results: Poses float64 [n, 1 + L + T, 5] by method; `kinematic` must be there.
        device: Where the model ran.

    Returns:
        Contact shares, then for each method the mean error over steps and walks and the gain on dead reckoning.
    """
    facts = {"walks": len(walks.worlds), "steps": walks.steps}
    found = [
        record("steps held back by walls", 100.0 * walks.contact.mean(), "%", bar=100.0 * LEAST_CONTACT, device=device),
        record("steps changed by walls, steps, falls, water", 100.0 * walks.changed.mean(), "%", device=device),
    ]
    reckoning = errors(results["kinematic"], walks)
    for method, poses in results.items():
        error = errors(poses, walks)
        details = {
            **facts,
            "median_walk": float(np.median(error.mean(1))),
            "last_step": float(error[:, -1].mean()),
            "by_walk": error.mean(1),
            "heights": float(np.abs(poses[:, -walks.steps :, 1] - walks.poses[:, -walks.steps :, 1]).mean()),
        }
        bar = None if method == "kinematic" else MOST_ERROR
        found.append(
            record(
                f"{method}: mean error",
                float(error.mean()),
                "blocks",
                bar=bar,
                better="lower",
                device=device,
                details=details,
            )
        )
        found.append(record(f"{method}: median over walks", details["median_walk"], "blocks", device=device))
        if method != "kinematic":
            gain = float(reckoning.mean() / max(error.mean(), 1e-9))
            found.append(record(f"{method}: kinematic error over it", gain, "times", bar=LEAST_GAIN, device=device))
    return found
