"""What every environment shares: a row is one world, and rows of one backend advance together.

`DecMemEnv` is one row, `DecMemVectorEnv` N rows, and the voxel environments are the same over another backend. A row
owns all its state and the generator it draws from: row i of a batch does what a single environment of its seed does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import tasks
from .conventions.actions import noop
from .conventions.poses import integrate_kinematic
from .predicted_player import NO_PREDICTOR, PredictedPlayer, PredictedPoses
from .spaces import action_space, action_to_pose, action_to_vector, observation_space, resize_frame
from .start import WORLD_SEEDS, Start, make_start
from .worlds import Simulator, step_all

POSE_SOURCES = ("truth", "predictor", "kinematic")
_LARGEST_SIZE = 1024


@dataclass(frozen=True)
class Settings:
    """Options that the dream and the true world, single and vector, have in common.

    Attributes:
        action_mode: `discrete` (12 actions), `multidiscrete`, `dict` (MineRL keys and camera degrees), `vector` (25
            floats) or `pose` (absolute x, y, z, pitch, yaw).
        obs_mode: `frame`, `frame_pose` or `frame_goal`; None is `frame_goal` for `reach_landmark`, else `frame`.
        obs_size: Height and width that observed frames are averaged to (render keeps the full size); None: full size.
        task: `reach_landmark`, `return_home`, `explore` or None (reward 0, never terminated). See `tasks`.
        pose_source: How actions become poses. `truth`: a player in the voxel world walks with collisions and gravity;
            `predictor`: the player walks through the blocks that the model's frames show; `kinematic`: dead reckoning,
            through walls. None is truth wherever there is a voxel world, else predictor where the checkpoint has one.
        context_frames: True frames that the model observes before an episode that starts in a voxel world; 64 are a
            look around and a few steps, 540 a tour of the neighbourhood (`tour`).
        world_seeds: First and last seed of the voxel worlds that resets draw from.
    """

    action_mode: str = "discrete"
    obs_mode: str | None = None
    obs_size: tuple[int, int] | None = None
    task: str | None = None
    pose_source: str | None = None
    context_frames: int = 64
    world_seeds: tuple[int, int] = WORLD_SEEDS

    def __post_init__(self) -> None:
        task = tasks.make_task(self.task)
        if self.obs_mode is None:
            object.__setattr__(self, "obs_mode", "frame_goal" if task is not None and task.needs_landmark else "frame")
        if self.obs_mode == "frame_goal" and (task is None or not task.has_goal):
            raise ValueError(
                f"obs_mode 'frame_goal' needs a task with a goal (reach_landmark, return_home), not {self.task!r}"
            )
        if self.pose_source not in (None, *POSE_SOURCES):
            raise ValueError(
                f"unknown pose_source {self.pose_source!r}: expected one of {', '.join(POSE_SOURCES)} or None"
            )
        if isinstance(self.context_frames, bool) or self.context_frames < 1:
            raise ValueError(f"context_frames is {self.context_frames}: expected at least 1")
        if self.obs_size is not None:
            size = tuple(int(side) for side in self.obs_size)
            if len(size) != 2 or not all(1 <= side <= _LARGEST_SIZE for side in size):
                raise ValueError(
                    f"obs_size is {self.obs_size}: expected (height, width) in pixels, for example (64, 64)"
                )
            object.__setattr__(self, "obs_size", size)
        first, last = self.world_seeds
        if not 0 <= first <= last:
            raise ValueError(f"world_seeds is {self.world_seeds}: expected (first, last) with 0 <= first <= last")
        object.__setattr__(self, "world_seeds", (int(first), int(last)))


@dataclass
class Row:
    """One world: everything that changes in it.

    Attributes:
        rng: Draws worlds, walks and noise seeds at resets.
        pose: float64 [5].
        pose_source: `truth`, `predictor`, `kinematic` or `given` (action mode `pose`).
        frame: uint8 [H, W, 3], the last frame at full size.
        frames: uint8 [F, H, W, 3], all frames of the last step.
        simulator: The true player, if the pose is the truth.
        task_state: Of the task, if there is one.
        handle: What the backend keeps for the row.
        frame_index: Frames since the start of the episode.
        world_seed: Of the voxel world; None after a clip, frames or an image.
        landmark: float64 [3], the goal of `reach_landmark`.
        player: The player in the world that the frames show, if the pose is the predictor's.
    """

    rng: np.random.Generator
    pose: NDArray[np.float64]
    pose_source: str
    frame: NDArray[np.uint8]
    frames: NDArray[np.uint8]
    simulator: Simulator | None
    task_state: tasks.State | None
    handle: Any
    frame_index: int = 0
    world_seed: int | None = None
    landmark: NDArray[np.float64] | None = None
    player: PredictedPlayer | None = None


@dataclass(frozen=True, eq=False)
class RowSnapshot:
    """A row, frozen. Restore it as often as you like; nothing in it is shared with a running row.

    Attributes:
        kind: Backend and task it belongs to.
        fields: Copies of the row's plain values.
        world: The voxel world, or None.
        simulator: `Simulator.snapshot()`, or None.
        handle: The backend's snapshot (a model `Snapshot` for the dream).
        rng: State of the row's generator.
        player: `PredictedPlayer.snapshot()`, or None.
    """

    kind: tuple[str, str | None]
    fields: Mapping[str, Any]
    world: Any
    simulator: Mapping[str, Any] | None
    handle: Any
    rng: Mapping[str, Any] = field(repr=False)
    player: Mapping[str, Any] | None = field(default=None, repr=False)


class Backend(Protocol):
    """Where frames come from: a model or the renderer."""

    height: int
    width: int
    frames_per_step: int
    has_worlds_only: bool
    poses: PredictedPoses | None  # None where poses cannot come from the frames

    def begin(self, start: Start, seed: int) -> tuple[Any, NDArray[np.uint8]]:
        """Open a row: its handle, and the last context frame uint8 [H, W, 3]."""
        ...

    def advance(
        self,
        rows: Sequence[Row],
        actions: NDArray[np.float32],
        poses: NDArray[np.float64],
        cells: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """Frames uint8 [n, F, H, W, 3] for actions [n, F, 25] that lead to poses [n, F, 5] and change cells [n, F, 3].

        Cells are NaN where no hand changes one, or nobody knows which.
        """
        ...

    def memory_frames(self, handle: Any) -> int:
        """Frames in memory."""
        ...

    def stats(self, handle: Any) -> dict[str, Any]:
        """Everything else worth knowing."""
        ...

    def snapshot(self, handle: Any) -> Any:
        """Frozen copy of a handle."""
        ...

    def restore(self, snapshot: Any, simulator: Simulator | None) -> Any:
        """A new handle from a snapshot."""
        ...

    def fork(self, handle: Any, simulators: Sequence[Simulator | None]) -> list[Any]:
        """Handles of children; child 0 continues the stream of noise."""
        ...

    def close(self, handle: Any) -> None:
        """Free a handle."""
        ...


class Rows:
    """Starts, steps, freezes and shows rows of one backend.

    Args:
        backend: Where frames come from.
        settings: Options of `Settings` by name.
    """

    def __init__(self, backend: Backend, settings: Mapping[str, Any]) -> None:
        known = set(Settings.__dataclass_fields__)
        unknown = sorted(set(settings) - known)
        if unknown:
            raise TypeError(
                f"unknown argument {', '.join(unknown)}: this environment also takes {', '.join(sorted(known))}"
            )
        self.backend = backend
        self.settings = Settings(**settings)
        if backend.has_worlds_only and self.settings.pose_source in ("kinematic", "predictor"):
            raise ValueError(
                f"pose_source {self.settings.pose_source!r}: the true world moves players by its own physics, use None "
                "or 'truth'"
            )
        if self.settings.pose_source == "predictor" and backend.poses is None:
            raise ValueError(f"pose_source 'predictor': this checkpoint has no {NO_PREDICTOR}")
        self.task = tasks.make_task(self.settings.task)
        height, width = self.settings.obs_size or (backend.height, backend.width)
        self.action_space = action_space(self.settings.action_mode)
        self.observation_space = observation_space(str(self.settings.obs_mode), height, width)

    def start(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> Row:
        """Begin an episode; `rng` becomes the row's own."""
        backend, settings = self.backend, self.settings
        start = make_start(
            rng,
            options,
            context_frames=settings.context_frames,
            landmark=self.task is not None and self.task.needs_landmark,
            size=(backend.height, backend.width),
            world_seeds=settings.world_seeds,
        )
        if start.world is None and backend.has_worlds_only:
            raise ValueError("the true voxel world starts from world seeds only: give options['world_seed'] or none")
        if start.world is None and settings.pose_source == "truth":
            raise ValueError(
                "pose_source 'truth' needs a voxel world to start from: use pose_source=None or 'kinematic'"
            )
        seed = int(rng.integers(2**31))
        simulator = start.simulator if settings.pose_source in (None, "truth") else None
        player = None
        if simulator is None and settings.pose_source != "kinematic" and settings.action_mode != "pose":
            if backend.poses is not None:
                start, player = backend.poses.begin(start)
        handle, frame = backend.begin(start, seed)
        pose = start.poses[-1].copy()
        source = "predictor" if player is not None else "kinematic" if simulator is None else "truth"
        source = "given" if settings.action_mode == "pose" else source
        state = None if self.task is None else self.task.begin(pose, start.landmark)
        world_seed = None if start.world is None else int(start.world.seed)
        return Row(
            rng, pose, source, frame, frame[None], simulator, state, handle, 0, world_seed, start.landmark, player
        )

    def step(self, rows: Sequence[Row], actions: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Advance rows by one step each, in one batch.

        Args:
            rows: n rows, changed in place.
            actions: One action of the single action space for each.

        Returns:
            Rewards float64 [n] and terminated bool [n].

        Raises:
            ValueError: An action outside its space; no row has moved then.
        """
        length = self.backend.frames_per_step
        if self.settings.action_mode == "pose":
            given = [action_to_pose(action) for action in actions]
            vectors = np.repeat(noop()[None], len(rows), 0)
        else:
            given = []
            vectors = np.stack([action_to_vector(self.settings.action_mode, action) for action in actions])
        moves = [self._move(rows, vectors, given) for _ in range(length)]
        poses, cells = (np.stack(part, 1) for part in zip(*moves, strict=True))
        held = np.repeat(vectors[:, None], length, 1)
        frames = self.backend.advance(rows, held, poses, cells)
        seeing = [(row.player, row.handle) for row in rows if row.player is not None]
        if seeing and self.backend.poses is not None:
            self.backend.poses.observe(*zip(*seeing, strict=True))
        for i, row in enumerate(rows):
            row.frames = frames[i]
            row.frame = frames[i, -1]
            row.frame_index += length
        if self.task is None:
            return np.zeros(len(rows)), np.zeros(len(rows), np.bool_)
        state = tasks.stack([row.task_state for row in rows if row.task_state is not None])
        rewards, terminated, state = self.task.step(frames[:, -1], poses[:, -1], vectors, state)
        for row, one in zip(rows, tasks.unstack(state), strict=True):
            row.task_state = one
        return rewards, terminated

    def _move(
        self, rows: Sequence[Row], vectors: NDArray[np.float32], given: Sequence[NDArray[np.float64]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Move all rows by one frame; returns their poses [n, 5] and the cells that their hands change [n, 3]."""
        cells = np.full((len(rows), 3), np.nan)
        if given:
            for row, pose in zip(rows, given, strict=True):
                row.pose = pose.copy()
                if row.simulator is not None:
                    row.simulator.teleport(0, pose)
            return np.stack([row.pose for row in rows]), cells
        true = [i for i, row in enumerate(rows) if row.simulator is not None]
        if true:
            moved = step_all([row.simulator for row in rows if row.simulator is not None], vectors[true])
            for i, pose in zip(true, moved, strict=True):
                rows[i].pose = pose.copy()
        seeing = [i for i, row in enumerate(rows) if row.player is not None]
        if seeing and self.backend.poses is not None:
            moved = self.backend.poses.move([row.player for row in rows if row.player is not None], vectors[seeing])
            for i, pose in zip(seeing, moved, strict=True):
                rows[i].pose = pose.copy()
        for row, vector in zip(rows, vectors, strict=True):
            if row.simulator is None and row.player is None:
                row.pose = integrate_kinematic(row.pose, vector)
        for i, row in enumerate(rows):
            if row.simulator is not None:
                cells[i] = row.simulator.touched[0]
            elif row.player is not None:
                cells[i] = row.player.touched
        return np.stack([row.pose for row in rows]), cells

    def observe(self, row: Row) -> Any:
        """Observation of a row, in fresh arrays."""
        frame = resize_frame(row.frame, self.settings.obs_size)
        if self.settings.obs_mode == "frame":
            return frame
        if self.settings.obs_mode == "frame_pose":
            return {"frame": frame, "pose": row.pose.copy()}
        assert self.task is not None and row.task_state is not None
        return {"frame": frame, "goal": self.task.goal(row.pose[None], row.task_state)[0]}

    def info(self, row: Row) -> dict[str, Any]:
        """The four facts every reset and step reports, in fresh arrays."""
        return {
            "pose": row.pose.copy(),
            "pose_source": row.pose_source,
            "frame_index": row.frame_index,
            "memory_frames": self.backend.memory_frames(row.handle),
        }

    def stats(self, row: Row) -> dict[str, Any]:
        """The backend's stats with the row's world, landmark and all frames of the last step."""
        known = {"world_seed": row.world_seed, "landmark": row.landmark, "frames": row.frames}
        return {**self.backend.stats(row.handle), **known}

    @property
    def _kind(self) -> tuple[str, str | None]:
        return type(self.backend).__name__, self.settings.task

    def snapshot(self, row: Row) -> RowSnapshot:
        """Freeze a row."""
        fields = {
            "pose": row.pose.copy(),
            "pose_source": row.pose_source,
            "frame": row.frame.copy(),
            "frames": row.frames.copy(),
            "task_state": _copy_state(row.task_state),
            "frame_index": row.frame_index,
            "world_seed": row.world_seed,
            "landmark": None if row.landmark is None else row.landmark.copy(),
        }
        simulator = row.simulator
        return RowSnapshot(
            self._kind,
            fields,
            None if simulator is None else simulator.worlds[0],
            None if simulator is None else simulator.snapshot(),
            self.backend.snapshot(row.handle),
            row.rng.bit_generator.state,
            None if row.player is None else row.player.snapshot(),
        )

    def restore(self, snapshot: RowSnapshot) -> Row:
        """A new row that goes on from a snapshot.

        Raises:
            ValueError: It was taken in another kind of world or with another task.
        """
        if snapshot.kind != self._kind:
            world, task = snapshot.kind
            raise ValueError(
                f"snapshot of {world} with task {task}: this environment is {self._kind[0]} with task {self._kind[1]}"
            )
        if snapshot.player is not None and self.backend.poses is None:
            raise ValueError(f"snapshot with predicted poses: this environment's checkpoint has no {NO_PREDICTOR}")
        simulator = _simulator(snapshot.world, snapshot.simulator)
        handle = self.backend.restore(snapshot.handle, simulator)
        return self._thaw(snapshot, simulator, handle, 0)

    def fork(self, row: Row, count: int) -> list[Row]:
        """Children that go on from here; child 0 as the row would, the others with noise of their own."""
        if count < 1:
            raise ValueError(f"fork({count}): expected at least 1 child")
        frozen = self.snapshot(row)
        simulators = [_simulator(frozen.world, frozen.simulator) for _ in range(count)]
        handles = self.backend.fork(row.handle, simulators)
        return [self._thaw(frozen, simulators[i], handles[i], i) for i in range(count)]

    def _thaw(self, snapshot: RowSnapshot, simulator: Simulator | None, handle: Any, child: int) -> Row:
        rng = np.random.Generator(np.random.PCG64())
        rng.bit_generator.state = dict(snapshot.rng)
        if child:
            rng = np.random.default_rng([int(rng.integers(2**63)), child])
        fields = dict(snapshot.fields)
        for name in ("pose", "frame", "frames"):
            fields[name] = fields[name].copy()
        fields["task_state"] = _copy_state(fields["task_state"])
        player = None if snapshot.player is None else PredictedPlayer.restore(snapshot.player)
        return Row(rng=rng, simulator=simulator, handle=handle, player=player, **fields)

    def close(self, row: Row) -> None:
        """Free what the backend keeps for a row."""
        self.backend.close(row.handle)


def _copy_state(state: tasks.State | None) -> tasks.State | None:
    return None if state is None else {key: value.copy() for key, value in state.items()}


def _simulator(world: Any, state: Mapping[str, Any] | None) -> Simulator | None:
    if state is None:
        return None
    simulator = Simulator([world])
    simulator.restore(dict(state))
    return simulator
