"""Players in voxel worlds, many at once, ten ticks a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..conventions.actions import Action, validate_vector
from ..conventions.poses import validate_poses
from .blocks import AIR, PLACED
from .hands import Edit, target
from .native_player import load, move_native
from .player import Grids, move, turn, wish
from .terrain import World


class Simulator:
    """N players, each alone in a copy of a world.

    One step of an action: the camera turns, the player moves, then the hand breaks or places. Entries of an action
    between 0 and 1 walk at that fraction of full speed; camera entries may be any fraction of 15 degrees.

    Attributes:
        worlds: The worlds as generated.
        blocks: uint8 [N, X, Z, Y], every player's own copy, with the edits.
        poses: float64 [N, 5].
        edits: Every block changed since the start, in order.
        touched: float64 [N, 3], the cell (x, y, z) that each player's hand changed in the last tick; NaN: none.
    """

    def __init__(self, worlds: Sequence[World], poses: ArrayLike | None = None) -> None:
        """Put one player into a copy of each world, at the spawns or at given poses [N, 5]."""
        self.worlds = list(worlds)
        if not self.worlds:
            raise ValueError("simulator: no worlds: expected at least one")
        blocks = np.stack([world.blocks for world in self.worlds])
        self._start(blocks, np.arange(len(blocks)), [w.spawn for w in self.worlds] if poses is None else poses)
        self._editable = True

    @classmethod
    def shared(cls, worlds: Sequence[World], index: ArrayLike, poses: ArrayLike) -> Simulator:
        """Players who share worlds and neither break nor place (such actions are refused): cheap for many walks.

        Args:
            worlds: The worlds; not copied for each player.
            index: int [N], the world of each player.
            poses: [N, 5].
        """
        self = cls.__new__(cls)
        self.worlds = [worlds[int(i)] for i in np.asarray(index)]
        blocks = worlds[0].blocks[None] if len(worlds) == 1 else np.stack([world.blocks for world in worlds])
        self._start(blocks, np.asarray(index, np.int64), poses)
        self._editable = False
        return self

    def _start(self, blocks: NDArray[np.uint8], index: NDArray[np.int64], poses: Any) -> None:
        self.blocks = blocks
        self.edits: list[Edit] = []
        self.poses = np.array(validate_poses(poses))
        if self.poses.shape != (len(index), 5):
            raise ValueError(f"poses have shape {self.poses.shape}: expected one pose for each of {len(index)} players")
        self._rise = np.zeros(len(index))
        self.touched = np.full((len(index), 3), np.nan)
        self._grids = Grids(self.blocks, index)
        stride = self.blocks.strides[0]
        self._addresses = self.blocks.ctypes.data + stride * np.asarray(index, np.uint64)

    def step(self, actions: ArrayLike) -> NDArray[np.float64]:
        """Advance one tick.

        Args:
            actions: float32 [N, 25].

        Returns:
            Poses after it, float64 [N, 5] (a copy).

        Raises:
            ValueError: Wrong shape or an entry out of range.
        """
        vectors = validate_vector(actions).astype(np.float64)
        if vectors.shape != (len(self.poses), vectors.shape[-1]):
            raise ValueError(f"actions have shape {vectors.shape}: expected [{len(self.poses)}, 25]")
        _tick([self], vectors)
        return self.poses.copy()

    def walk(self, actions: ArrayLike) -> NDArray[np.float64]:
        """Advance by several ticks.

        Args:
            actions: float32 [T, N, 25].

        Returns:
            Poses after each, float64 [T, N, 5].

        Raises:
            ValueError: Wrong shape or an entry out of range; nobody has moved then.
        """
        vectors = validate_vector(actions).astype(np.float64)
        if vectors.ndim != 3 or vectors.shape[1] != len(self.poses):
            raise ValueError(f"actions have shape {vectors.shape}: expected [T, {len(self.poses)}, 25]")
        poses = np.empty((*vectors.shape[:2], 5))
        for t, vector in enumerate(vectors):
            poses[t] = _tick([self], vector)
        return poses

    def teleport(self, player: int, pose: ArrayLike, rise: float = 0.0) -> None:
        """Put a player somewhere, at rest or rising at so many blocks a tick."""
        self.poses[player] = validate_poses(pose, "pose")
        self._rise[player] = rise

    @property
    def rise(self) -> NDArray[np.float64]:
        """Vertical speeds in blocks a tick, float64 [N] (a copy)."""
        return self._rise.copy()

    def snapshot(self) -> dict[str, Any]:
        """Everything that changes, as copies."""
        return {
            "blocks": self.blocks.copy(),
            "poses": self.poses.copy(),
            "rise": self._rise.copy(),
            "edits": list(self.edits),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot of this simulator (or of one with the same worlds)."""
        if state["blocks"].shape != self.blocks.shape:
            raise ValueError(f"snapshot of {len(state['blocks'])} players: this simulator has {len(self.blocks)}")
        self.blocks[...] = state["blocks"]
        self.poses = state["poses"].copy()
        self._rise = state["rise"].copy()
        self.edits = [Edit(*(int(value) for value in edit)) for edit in state["edits"]]

    def use_hands(self, breaks: NDArray[np.bool_], places: NDArray[np.bool_]) -> None:
        """Let players, each where it stands, break (first of all) or place: bool [N] each."""
        self.touched.fill(np.nan)
        used = breaks | places
        if not used.any():
            return
        for player in np.flatnonzero(used):
            self._use_hand(int(player), bool(breaks[player]))

    def _use_hand(self, player: int, breaking: bool) -> None:
        """Break the block the player looks at, or place one against its face (not into the player)."""
        if not self._editable:
            raise ValueError("these players share their worlds: break and place need a Simulator of their own")
        blocks = self.blocks[player]
        solid, free = target(blocks, self.poses[player])
        if solid is None:
            return
        if breaking:
            x, y, z = solid
            if y == 0:  # the bottom of the world stays closed
                return
            blocks[x, z, y] = AIR
            self._changed(Edit(player, x, y, z, AIR))
        elif free is not None:
            x, y, z = free
            before = blocks[x, z, y]
            blocks[x, z, y] = PLACED
            if self._grids.hits(*self.poses[:, :3].T)[player]:
                blocks[x, z, y] = before
            else:
                self._changed(Edit(player, x, y, z, PLACED))

    def _changed(self, edit: Edit) -> None:
        self.edits.append(edit)
        self.touched[edit.player] = edit.x, edit.y, edit.z


def step_all(simulators: Sequence[Simulator], actions: ArrayLike) -> NDArray[np.float64]:
    """Advance simulators of one player each by one tick, in one batch: what `step` of each would do.

    Args:
        simulators: N different ones.
        actions: float32 [N, 25].

    Returns:
        Poses after it, float64 [N, 5].

    Raises:
        ValueError: Wrong shape, an entry out of range, or a simulator of several players.
    """
    vectors = validate_vector(actions).astype(np.float64)
    if len(vectors) != len(simulators) or any(len(one.poses) != 1 for one in simulators):
        raise ValueError(f"actions have shape {vectors.shape}: expected [{len(simulators)}, 25], one player each")
    return _tick(simulators, vectors)


def _tick(simulators: Sequence[Simulator], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Advance all players of all simulators; vectors and the poses returned run over them in order."""
    poses = turn(np.concatenate([one.poses for one in simulators]), vectors)
    rise = np.concatenate([one._rise for one in simulators])
    wanted, jumps = wish(poses, vectors), vectors[:, Action.JUMP] > 0.5
    ends = np.cumsum([len(one.poses) for one in simulators])
    parts = [slice(end - len(one.poses), end) for one, end in zip(simulators, ends, strict=True)]
    library = load()
    if library is None:
        for one, part in zip(simulators, parts, strict=True):
            poses[part, :3], rise[part] = move(one._grids, poses[part, :3], rise[part], wanted[part], jumps[part])
    else:
        addresses = np.concatenate([one._addresses for one in simulators])
        poses[:, :3], rise = move_native(library, addresses, poses[:, :3], rise, wanted, jumps)
    breaks, places = vectors[:, Action.ATTACK] > 0.5, vectors[:, Action.PLACE] > 0.5
    for one, part in zip(simulators, parts, strict=True):
        one.poses, one._rise = poses[part].copy(), rise[part].copy()
        one.use_hands(breaks[part], places[part])
    return poses
