"""Cutting clips out of trajectories: whole runs, or pieces with time gaps whose later parts revisit earlier poses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decmem_env.conventions.poses import wrap_degrees

STRIDE = 4  # resolution of the revisit table, in frames
RECENT = 8  # frames whose view is still there and need not be remembered (the window)
NEAR_BLOCKS, NEAR_DEGREES = 2.0, 20.0  # a little wider than the measures' "near"
YOUNGEST, OLDEST = 64, 65536  # frames that `age` adds: at most two hours


def revisit_table(poses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which moments of a trajectory see about the same.

    Args:
        poses: [L, 5].

    Returns:
        bool [M, M], M = ceil(L / STRIDE), symmetric.
    """
    coarse = poses[::STRIDE]
    distance = np.linalg.norm(coarse[:, None, :3] - coarse[None, :, :3], axis=-1)
    angle = np.abs(wrap_degrees(coarse[:, None, 3:] - coarse[None, :, 3:])).max(-1)
    return (distance <= NEAR_BLOCKS) & (angle <= NEAR_DEGREES)


def _piece_lengths(frames: int, pieces: int, rng: np.random.Generator) -> list[int]:
    """Random lengths of at least a sixth of an even share each."""
    least = max(1, frames // (pieces * 3))
    spare = frames - least * pieces
    cuts = np.sort(rng.integers(0, spare + 1, pieces - 1))
    return [int(v) + least for v in np.diff([0, *cuts, spare])]


def sample_clip(
    table: NDArray[np.bool_],
    length: int,
    frames: int,
    splice: float,
    rng: np.random.Generator,
    changes: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Choose the frames of one training clip.

    Args:
        table: `revisit_table` of the trajectory.
        length: L, frames of the trajectory.
        frames: T, frames of the clip, at most L.
        splice: Probability of making the clip of two or three pieces with gaps.
        rng: Randomness.
        changes: bool [L], frames whose action breaks or places; no gap jumps over one, or the clip would show a world
            that changed for no reason the model can see.

    Returns:
        int64 [T], strictly increasing frame numbers below L. Where possible the later pieces of a splice start
        so that they see again what earlier ones saw.

    Raises:
        ValueError: The trajectory is shorter than the clip.
    """
    if length < frames:
        raise ValueError(f"a trajectory of {length} frames is shorter than a clip of {frames}")
    room = length - frames
    if rng.random() >= splice or room < 2 or frames < 4:
        return np.arange(frames) + rng.integers(0, room + 1)
    sizes = _piece_lengths(frames, 3 if frames >= 12 and rng.random() < 0.4 else 2, rng)
    # The first piece starts early enough that gaps of every length remain possible.
    start = int(rng.integers(0, max(room // 2, 1)))
    chosen = [np.arange(start, start + sizes[0])]
    for k in range(1, len(sizes)):
        earliest = int(chosen[-1][-1]) + 2
        latest = length - sum(sizes[k:])
        if changes is not None and (ahead := np.flatnonzero(changes[earliest - 1 : latest])).size:
            latest = earliest - 1 + int(ahead[0])
        if latest <= earliest:
            start = latest
        else:
            seen = np.zeros(len(table), bool)
            seen[np.unique(np.concatenate(chosen) // STRIDE)] = True
            again = np.concatenate([[0.0], np.cumsum(table[:, seen].any(1))])
            starts = np.arange(earliest, latest + 1)
            first, last = starts // STRIDE, np.minimum((starts + sizes[k]) // STRIDE + 1, len(table))
            score = (again[last] - again[first]) / (last - first)
            weight = score**2 + 0.02
            start = int(rng.choice(starts, p=weight / weight.sum()))
        chosen.append(np.arange(start, start + sizes[k]))
    return np.concatenate(chosen)


def view_numbers(poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the views of a trajectory: poses that are exact returns to each other have equal numbers.

    Args:
        poses: [L, 5].

    Returns:
        int64 [L]; poses are compared on a grid of the measures' tolerances (0.1 block, 2 degrees), so two that lie
        either side of a line of the grid count as different.
    """
    poses = np.concatenate([poses[:, :3], wrap_degrees(poses[:, 3:])], 1)
    cells = np.round(poses / np.array([0.1, 0.1, 0.1, 2.0, 2.0])).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def jumping_clip(
    table: NDArray[np.bool_],
    views: NDArray[np.int64],
    frames: int,
    rng: np.random.Generator,
    changes: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """A clip that jumps about in a trajectory, mostly back to what it has shown.

    On a walk, the frame before shows most of the next one: hardly a frame in a hundred can be known from memory alone.
    Here every piece but the first begins somewhere else: four of five within sight of what an earlier piece has shown
    and out of sight of the last `RECENT` frames, and of these four of five where no frame shows the very same view.
    Where the player changes the world, the clip runs through every change and jumps only between two of them.

    Args:
        table: `revisit_table` of the trajectory.
        views: int64 [L], its `view_numbers`.
        frames: T, at most L.
        rng: Randomness.
        changes: bool [L], frames whose action breaks or places.

    Returns:
        Frame numbers int64 [T] below L; wherever one does not follow the one before, the clip jumps.
    """
    clip = _Jumps(table, views, frames)
    edits = np.flatnonzero(changes) if changes is not None else np.zeros(0, np.int64)
    bounds = [0, *(int(t) for t in edits if t > 0), len(views)]
    first = int(rng.integers(max(1, frames // 6), max(1, frames // 2) + 1))
    # Between one jump for every five frames and one for every frame: with keyframes, the frame before is rarely kept.
    size = float(np.exp(rng.uniform(0.0, np.log(5.0))))
    if len(bounds) == 2:
        start = int(rng.integers(0, len(views) - first + 1))
        clip.run(start, start + first)
        while clip.left:
            clip.go_back(0, len(views), min(_size(size, rng), len(views)), rng)
        return clip.numbers()
    at = int(rng.integers(0, len(bounds) - 2))
    clip.run(max(bounds[at], bounds[at + 1] - first), bounds[at + 1])
    for start, behind in zip(bounds[at + 1 : -1], bounds[at + 2 :], strict=True):
        last = behind == len(views)
        after, before = int(rng.integers(1, 8)), 0 if last else int(rng.integers(1, 8))
        stay = clip.left if last else int(rng.integers(4, max(5, frames // 4)))
        if after + before + 4 >= behind - start and not last:
            clip.run(start, behind)
            continue
        clip.run(start, min(start + after, behind))
        goal = max(0, clip.left - stay)
        while clip.left > goal:
            clip.go_back(start, behind, min(_size(size, rng), behind - start), rng)
        clip.run(behind - before, behind)
    return clip.numbers()


def _size(mean: float, rng: np.random.Generator) -> int:
    return int(rng.geometric(1.0 / mean))


class _Jumps:
    """The frames of a clip that jumps, as it grows to `frames`; arguments as of `jumping_clip`."""

    def __init__(self, table: NDArray[np.bool_], views: NDArray[np.int64], frames: int) -> None:
        self._table, self._views, self._frames = table, views, frames
        self._shown: list[int] = []
        self._known, self._settled = np.zeros(len(table), bool), 0

    @property
    def left(self) -> int:
        return self._frames - len(self._shown)

    def numbers(self) -> NDArray[np.int64]:
        return np.array(self._shown, np.int64)

    def run(self, first: int, behind: int) -> None:
        """Show frames `first` to `behind` - 1, as many as fit."""
        self._shown += range(first, min(behind, first + self.left))

    def go_back(self, first: int, behind: int, size: int, rng: np.random.Generator) -> None:
        """Show `size` frames from somewhere in [first, behind) on."""
        settled = max(self._settled, len(self._shown) - RECENT)
        fresh = np.unique(np.array(self._shown[self._settled : settled], np.int64) // STRIDE)
        self._known |= self._table[:, fresh].any(1)
        self._settled = settled
        start = int(rng.integers(first, behind - size + 1))
        if rng.random() < 0.8:
            starts = np.arange(first, behind - size + 1)
            shown = np.array(self._shown, np.int64)
            recent = self._table[:, np.unique(shown[-RECENT:] // STRIDE)].any(1)
            hidden = starts[(self._known & ~recent)[starts // STRIDE]]
            beside = hidden[~np.isin(self._views[hidden], self._views[shown])] if rng.random() < 0.8 else hidden
            choice = beside if len(beside) else hidden
            start = int(rng.choice(choice)) if len(choice) else start
        self.run(start, start + size)


def jump_times(index: NDArray[np.int64], length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """When the frames of a `jumping_clip` are shown: a jump takes up to `length` frames (log-uniform).

    Args:
        index: int64 [T].
        length: L, of the trajectory.
        rng: Randomness.

    Returns:
        int64 [T], ascending.
    """
    steps = np.ones(len(index), np.int64)
    jumps = np.flatnonzero(np.diff(index) != 1) + 1
    steps[jumps] += np.exp(rng.uniform(0.0, np.log(length), len(jumps))).astype(np.int64)
    steps[0] = 0
    return np.cumsum(steps)


def age(index: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Let more time pass at one place of a clip: what came before is as old as in a session of hours.

    The place is one where the clip jumps already, else any. Without this, a model whose trajectories have L frames has
    never met a memory older than that, and falls apart when it does.

    Args:
        index: int64 [T], ascending frame numbers.
        rng: Randomness.

    Returns:
        int64 [T], ascending; later frames are later by the same number, log-uniform up to `OLDEST`.
    """
    jumps = np.flatnonzero(np.diff(index) > 1) + 1
    place = int(rng.choice(jumps)) if len(jumps) else int(rng.integers(1, len(index)))
    later = int(np.exp(rng.uniform(np.log(YOUNGEST), np.log(OLDEST))))
    return index + later * (np.arange(len(index)) >= place)
