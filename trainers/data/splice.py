"""Cutting clips out of trajectories: whole runs, or pieces with time gaps whose later parts revisit earlier poses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decmem_env.conventions.poses import wrap_degrees

STRIDE = 4  # resolution of the revisit table, in frames
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


def jumping_clip(
    table: NDArray[np.bool_], length: int, frames: int, pieces: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A clip that jumps about in a trajectory whose world does not change.

    On a walk, the frame before shows most of the next one: hardly a frame in a hundred can be known from memory alone.
    Here every piece but the first begins somewhere else, three of four within sight of something that an earlier piece
    has shown.

    Args:
        table: `revisit_table` of the trajectory.
        length: L, frames of the trajectory.
        frames: T, at most L.
        pieces: At most, beside the first.
        rng: Randomness.

    Returns:
        Frame numbers int64 [T] below L, in any order, and the times at which they are shown, int64 [T], ascending.
    """
    first = int(rng.integers(max(1, frames // 6), max(1, frames // 2) + 1))
    start = int(rng.integers(0, length - first + 1))
    chosen, times = [np.arange(start, start + first)], [np.arange(first)]
    seen = np.zeros(len(table), bool)
    for size in _piece_lengths(
        frames - first, int(rng.integers(1, max(1, min(pieces, (frames - first) // 4)) + 1)), rng
    ):
        seen[np.unique(chosen[-1] // STRIDE)] = True
        starts = np.arange(length - size + 1)
        if rng.random() < 0.75:
            known = np.asarray(table[:, seen].any(axis=1))
            again = starts[known[starts // STRIDE]]
            starts = again if len(again) else starts
        start = int(rng.choice(starts))
        chosen.append(np.arange(start, start + size))
        times.append(times[-1][-1] + int(np.exp(rng.uniform(0.0, np.log(length)))) + np.arange(1, size + 1))
    return np.concatenate(chosen), np.concatenate(times)


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
