"""Players in the world that a model's latents show: poses from the model (`pose_source="predictor"`).

A player has a map of the blocks around it. The checkpoint's pose predictor brings it up to date with each latent frame
(`model.pose_predictor`); an action then moves the player through the map by the rules of `worlds.player`, so that walls
stop it, steps lift it and holes let it fall. The map is all it knows: what the true world holds never enters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .model.pose_predictor import (
    ABOVE,
    AIR,
    BELOW,
    CLASSES,
    FILE,
    LARGEST,
    SOLID,
    PosePredictor,
    all_columns,
    around,
    bounded,
)
from .model.voxel_rays import HANDS
from .start import Start
from .worlds import Simulator, World, step_all
from .worlds import blocks as block_types
from .worlds.player import HALF_WIDTH, HEIGHT
from .worlds.terrain import X, Y, Z

_MIDDLE = np.array([X // 2, Y // 2, Z // 2])
_LEEWAY = np.array([X // 2 - 32, Y // 2 - 12, Z // 2 - 32])  # from the middle; beyond, the map moves along
_IDS = np.array([block_types.AIR, block_types.ID["stone"], block_types.WATER], np.uint8)  # by class
NO_PREDICTOR = (
    f"{FILE}: train one with `decmem train pose --out runs/pose --init model/weights/tiny` and use checkpoint "
    "runs/pose, or pose_source 'kinematic'"
)
Film = Callable[[Start], NDArray[np.uint8]]
_CONTEXT = 64  # frames of a context that a player gets to see, the last ones
_ENCODE_BATCH = 32
_HEIGHTS = np.arange(-BELOW, ABOVE + 1)
_ROUNDING = 1e-4  # blocks; feet may rest this much below the top of a block
_STILL = 1e-6  # blocks and degrees


class PredictedPlayer:
    """One player with its map, a window of X x Z x Y cells that moves along.

    Args:
        pose: float64 [5], where it stands.

    Attributes:
        simulator: Moves the player through the map, in the map's own coordinates.
        known: float16 [X, Z, Y, 3], logits of air, solid and water; 0 where nothing is known.
        origin: int64 [3], the cell (x, y, z) of the world that is the map's first.
        climb: By how much it rose in its last step, in blocks.
        looked: float64 [6], pose and climb when it last saw a frame.
        touched: float64 [3], the cell (x, y, z) of the world that its hand changed in its last step; NaN: none.
    """

    def __init__(self, pose: NDArray[np.float64]) -> None:
        self.origin = np.floor(pose[:3]).astype(np.int64) - _MIDDLE
        blocks, flat = np.zeros((X, Z, Y), np.uint8), np.zeros((X, Z))
        world = World(0, blocks, self._inside(pose), [], flat.astype(np.uint8), flat.astype(np.int64))
        self.simulator = Simulator([world])
        self.known = np.zeros((X, Z, Y, CLASSES), np.float16)
        self.climb = 0.0
        self.looked = np.full(6, np.nan)
        self.touched = np.full(3, np.nan)

    def _inside(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([pose[:3] - self.origin, pose[3:]])

    @property
    def pose(self) -> NDArray[np.float64]:
        """Where the player is, float64 [5]."""
        own = self.simulator.poses[0]
        return np.concatenate([own[:3] + self.origin, own[3:]])

    def place(self, pose: NDArray[np.float64], rise: float = 0.0) -> None:
        """Put the player where it is one frame later; the map stays, or as much of it as is near.

        Args:
            pose: float64 [5].
            rise: Its vertical speed there, in blocks a tick.
        """
        self.climb = float(pose[1] - self.pose[1])
        self.simulator.teleport(0, self._inside(pose), rise)
        self.recentre()

    def recentre(self) -> None:
        """Move the window along when the player nears its side."""
        cell = np.floor(self.simulator.poses[0, :3]).astype(np.int64)
        if (np.abs(cell - _MIDDLE) <= _LEEWAY).all():
            return
        shift = cell - _MIDDLE
        self.known = _shifted(self.known, shift)
        self.simulator.blocks[0] = _shifted(self.simulator.blocks[0], shift)
        self.simulator.poses[0, :3] -= shift
        self.origin += shift

    def learn(self, cells: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Write into the map.

        Args:
            cells: int64 [Q, 3] (x, y, z) of the window.
            logits: float32 [Q, 3].
        """
        x, y, z = cells.T
        self.known[x, z, y] = logits
        self.simulator.blocks[0, x, z, y] = _IDS[logits.argmax(-1)]

    def remember_touch(self) -> None:
        """Be certain of the cell that the hand has just changed."""
        cell = self.simulator.touched[0]
        self.touched = cell + self.origin
        if not np.isnan(cell[0]):
            x, y, z = cell.astype(int)
            air = self.simulator.blocks[0, x, z, y] == block_types.AIR
            self.known[x, z, y] = _certain(AIR if air else SOLID)

    def free_body(self) -> None:
        """Where the player is there is no wall: a map that says so is wrong."""
        low = self.simulator.poses[0, :3] + [-HALF_WIDTH, 0.0, -HALF_WIDTH] + _ROUNDING
        high = self.simulator.poses[0, :3] + [HALF_WIDTH, HEIGHT, HALF_WIDTH] - _ROUNDING
        first, last = np.floor(low).astype(int), np.floor(high).astype(int) + 1
        body = tuple(slice(first[axis], last[axis]) for axis in (0, 2, 1))
        blocks, known = self.simulator.blocks[0][body], self.known[body]
        wrong = ~block_types.PASSABLE[blocks]
        if wrong.any():
            blocks[wrong], known[wrong] = block_types.AIR, _certain(AIR)

    def snapshot(self) -> dict[str, Any]:
        """Everything that changes, as copies; of the map only what is known."""
        bits = self.known.view(np.uint16)
        cells = np.flatnonzero(bits[..., 0] | bits[..., 1] | bits[..., 2])  # much faster than any()
        state = self.simulator.snapshot()
        blocks = state.pop("blocks").reshape(-1)[cells]
        logits = self.known.reshape(-1, CLASSES)[cells]
        return {
            **state,
            "cells": cells,
            "kinds": blocks,
            "known": logits,
            "origin": self.origin.copy(),
            "climb": self.climb,
            "looked": self.looked,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> PredictedPlayer:
        """A new player from a snapshot."""
        own = state["poses"][0]
        player = cls(np.concatenate([own[:3] + state["origin"], own[3:]]))
        player.origin, player.climb = state["origin"].copy(), float(state["climb"])
        player.looked = state["looked"].copy()
        player.known.reshape(-1, CLASSES)[state["cells"]] = state["known"]
        blocks = np.zeros((1, X, Z, Y), np.uint8)
        blocks.reshape(-1)[state["cells"]] = state["kinds"]
        player.simulator.restore({**state, "blocks": blocks})
        return player


class PredictedPlayers:
    """Moves players of one model, many in one batch.

    Args:
        predictor: The checkpoint's.
        device: Where it runs.
    """

    def __init__(self, predictor: PosePredictor, device: torch.device) -> None:
        self.predictor, self.device = predictor, device
        self._columns = all_columns(device)

    def observe(self, players: Sequence[PredictedPlayer], latents: Tensor, generated: Sequence[bool]) -> None:
        """Let each player see one latent frame from where it is.

        One that has not moved since its last frame is passed over: the same view tells nothing new, and while a player
        pushes against a wall small changes would add up.

        Args:
            players: n players.
            latents: float [n, C, h, w].
            generated: Of each frame, whether the model made it.
        """
        views = np.stack([np.append(player.pose, player.climb) for player in players])
        fresh = [i for i, player in enumerate(players) if not np.allclose(views[i], player.looked, 0.0, _STILL)]
        if not fresh:
            return
        for i in fresh:
            players[i].looked = views[i]
        players, latents, generated = [players[i] for i in fresh], latents[fresh], [generated[i] for i in fresh]
        inside = np.stack([player.simulator.poses[0] for player in players])
        cell = np.floor(inside[:, :3] + _ROUNDING).astype(np.int64)
        inner = torch.from_numpy((inside[:, :3] - cell).astype(np.float32)).to(self.device)
        angles = torch.from_numpy(inside[:, 3:].astype(np.float32)).to(self.device)
        climb = torch.tensor([player.climb for player in players], dtype=torch.float32, device=self.device)
        made = torch.tensor(generated, dtype=torch.bool, device=self.device)
        with torch.inference_mode():
            features = self.predictor.read(latents.to(self.device, torch.float32), inner, angles)
            asked = self.predictor.asked(inner, angles)
            valid, chosen = asked.byte().topk(int(asked.sum(-1).max()), -1)
            columns = self._columns[chosen]
            x, z = np.moveaxis(around(columns, angles).cpu().numpy() + cell[:, None, None, ::2], -1, 0)
            y = cell[:, None, None, None, 1:2] + _HEIGHTS
            before = np.stack(
                [p.known[x[i, ..., None], z[i, ..., None], y[i, ..., 0, :]] for i, p in enumerate(players)]
            )
            known = torch.from_numpy(before).to(self.device, torch.float32)
            seen = self.predictor.sight(features, columns, inner, angles, climb, made)
            shown = self.predictor.shown(columns, inner, angles)
            after = bounded(self.predictor.update(seen, shown, known)).cpu().numpy()
        for i, player in enumerate(players):
            picked = valid[i].cpu().numpy() > 0
            place = np.broadcast_arrays(x[i, picked, :1], y[i, :, 0, 0], z[i, picked, :1])
            player.learn(np.stack(place, -1).reshape(-1, 3), after[i, picked].reshape(-1, CLASSES))
            player.free_body()

    def move(self, players: Sequence[PredictedPlayer], actions: NDArray[np.float32]) -> NDArray[np.float64]:
        """Let each player act for one frame in what its map holds.

        Args:
            players: n players.
            actions: float32 [n, 25]; breaking and placing change the map.

        Returns:
            Poses after it, float64 [n, 5].
        """
        heights = [player.simulator.poses[0, 1] for player in players]
        moved = step_all([player.simulator for player in players], actions)
        for player, old, new in zip(players, heights, moved, strict=True):
            player.climb = float(new[1] - old)
            player.remember_touch()
            player.recentre()
        return np.stack([player.pose for player in players])

    def follow(
        self, players: Sequence[PredictedPlayer], actions: NDArray[np.float32], poses: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Put each player where somebody else says it is one frame later, and let its hand act there.

        Args:
            players: n players.
            actions: float32 [n, 25]; breaking and placing change the map.
            poses: float64 [n, 5].

        Returns:
            The cells that hands changed, float64 [n, 3], NaN where none.
        """
        used = actions[:, HANDS] > 0.5
        for player, pose, (breaks, places) in zip(players, poses, used, strict=True):
            player.place(pose)
            player.simulator.use_hands(np.array([breaks]), np.array([places]))
            player.remember_touch()
        return np.stack([player.touched for player in players])

    def begin(self, latents: Tensor, poses: NDArray[np.float64]) -> PredictedPlayer:
        """A player that has seen a context.

        Args:
            latents: float [T, C, h, w], in order.
            poses: float64 [T, 5]; the player stands at the last one.
        """
        player = PredictedPlayer(poses[0])
        for latent, pose in zip(latents, poses, strict=True):
            player.place(pose)
            self.observe([player], latent[None], [False])
        return player


class PredictedPoses:
    """The predicted players of an environment's rows.

    Args:
        model: A `WorldModel` with a pose predictor.
        film: Gives the frames of a start that has none, uint8 [C, H, W, 3].

    Raises:
        ValueError: The checkpoint has no pose predictor.
    """

    def __init__(self, model: Any, film: Film | None = None) -> None:
        if model.pose_predictor is None:
            raise ValueError(f"pose_source 'predictor': checkpoint {model.name} has no {NO_PREDICTOR}")
        self._model, self._film = model, film
        self._players = PredictedPlayers(model.pose_predictor, model.device)

    def begin(self, start: Start) -> tuple[Start, PredictedPlayer]:
        """A player that has seen the context; returns the start with its frames, which were needed for that."""
        frames = start.frames if self._film is None or start.frames is not None else self._film(start)
        if frames is None:
            raise ValueError("a player sees frames: give the start some")
        with self._model.lock:
            shown = torch.from_numpy(np.ascontiguousarray(frames[-_CONTEXT:])).to(self._model.device)
            latents = torch.cat([self._model.autoencoder.encode(part) for part in shown.split(_ENCODE_BATCH)])
        return replace(start, frames=frames), self._players.begin(latents, start.poses[-_CONTEXT:])

    def observe(self, players: Sequence[PredictedPlayer], sessions: Sequence[Any]) -> None:
        """Let each player see the newest frame of its session."""
        newest = [session.pending for session in sessions]
        latents = torch.stack([frames.latents[-1] for frames in newest])
        self._players.observe(players, latents, [bool(frames.generated[-1]) for frames in newest])

    def move(self, players: Sequence[PredictedPlayer], actions: NDArray[np.float32]) -> NDArray[np.float64]:
        """Let each player act for one frame; see `PredictedPlayers.move`."""
        return self._players.move(players, actions)

    def follow(
        self, players: Sequence[PredictedPlayer], actions: NDArray[np.float32], poses: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Let each player's hand act where somebody else says that it is; see `PredictedPlayers.follow`."""
        return self._players.follow(players, actions, poses)


def _certain(kind: int) -> NDArray[np.float16]:
    logits = np.full(CLASSES, -0.5 * LARGEST, np.float16)
    logits[kind] = LARGEST
    return logits


def _shifted(array: NDArray[Any], shift: NDArray[np.int64]) -> NDArray[Any]:
    """A copy whose entry [x, z, y] is the old one `shift` (x, y, z) further on; zeros come in from outside."""
    moved = np.zeros_like(array)
    pairs = [_overlap(size, int(shift[axis])) for size, axis in zip(array.shape, (0, 2, 1), strict=False)]
    moved[tuple(to for to, _ in pairs)] = array[tuple(source for _, source in pairs)]
    return moved


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    kept = max(size - abs(shift), 0)
    to, source = max(-shift, 0), max(shift, 0)
    return slice(to, to + kept), slice(source, source + kept)
