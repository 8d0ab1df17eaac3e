"""Where an episode starts: a fresh voxel world, a clip, frames, or one image.

A voxel start is a walk of `context_frames` frames that the model observes: a look around (24 turns of 15 degrees), then
a short way out and back to the first place; shorter contexts keep the middle of the look, and those with room for one
are tours of the neighbourhood (`tour`). The dream and the true world draw the same start from the same generator, so
that their tasks begin alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beginnings import fit_frames
from .conventions.actions import ACTION_DIM, Action, noop, press, validate_vector
from .conventions.clips import read_clip
from .conventions.poses import integrate_kinematic, validate_poses, wrap_degrees
from .tasks import REACH_DISTANCE
from .tour import SHORTEST, tour_of_length
from .worlds import Simulator, World, generate_world

# Environments draw their worlds here, apart from training (below 7,000,000), validation and test (8,000,000 on).
WORLD_SEEDS = (9_000_000, 9_999_999)
OPTIONS = ("world_seed", "clip", "frames", "actions", "poses", "image")
_LOOK = 24  # turns of 15 degrees
_NEAREST, _FURTHEST = 8.0, 14.0  # blocks from a start to its landmark
_WIDEST = 4  # turns of 15 degrees between the first view and the landmark
_TRIES, _BATCH = 32, 8  # starts tried in a world, at a time
_ENOUGH = 4  # starts that will do
_LONGEST_WALK = 40  # frames


@dataclass(frozen=True, eq=False)
class Start:
    """The beginning of an episode.

    Attributes:
        actions: float32 [C, 25], the first is the reset no-op.
        poses: float64 [C, 5].
        frames: uint8 [C, H, W, 3]; None for a voxel start, which the environment films itself.
        world: The voxel world; None for the other starts.
        simulator: The player at the end of the walk, in its own copy of the world.
        landmark: float64 [3], what `reach_landmark` leads to.
    """

    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    frames: NDArray[np.uint8] | None = None
    world: World | None = None
    simulator: Simulator | None = None
    landmark: NDArray[np.float64] | None = None


def make_start(
    rng: np.random.Generator,
    options: Mapping[str, Any] | None,
    *,
    context_frames: int,
    landmark: bool,
    size: tuple[int, int],
    world_seeds: tuple[int, int] = WORLD_SEEDS,
) -> Start:
    """Make the start that `options` of `reset` ask for.

    Args:
        rng: Source of the world seed and of the walk.
        options: None or {} draws a world; `world_seed` picks one; `clip` names an mp4; `frames` [C, H, W, 3] with
            optional `actions` [C, 25] and `poses` [C, 5]; `image` is a path or uint8 [H, W, 3].
        context_frames: Frames of a voxel start.
        landmark: Start in reach of a landmark (voxel worlds only).
        size: Height and width to which given frames are cut and resized.
        world_seeds: First and last world seed to draw from.

    Returns:
        The start.

    Raises:
        ValueError: Unknown or conflicting options, malformed values.
        FileNotFoundError: No such clip or image.
    """
    given = dict(options or {})
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise ValueError(f"reset options: unknown {', '.join(unknown)}; expected {', '.join(OPTIONS)}")
    sources = [name for name in ("world_seed", "clip", "frames", "image") if given.get(name) is not None]
    if len(sources) > 1:
        raise ValueError(f"reset options {' and '.join(sources)} exclude each other: give one")
    if ("actions" in given or "poses" in given) and "frames" not in given:
        raise ValueError("reset options actions and poses belong to frames: give options['frames'] too")
    drawn = int(
        rng.integers(world_seeds[0], world_seeds[1] + 1)
    )  # drawn always, so that the rest does not depend on it
    if not sources or sources[0] == "world_seed":
        seed = drawn if not sources else _world_seed(given["world_seed"])
        return _from_world(seed, rng, context_frames, landmark)
    if landmark:
        raise ValueError(f"task 'reach_landmark' needs a voxel world to start from: drop options[{sources[0]!r}]")
    if sources[0] == "clip":
        clip = read_clip(Path(given["clip"]))
        return Start(clip.actions, clip.poses, fit_frames(clip.frames, *size))
    if sources[0] == "image":
        return _from_frames(_load_image(given["image"])[None], None, None, size)
    return _from_frames(given["frames"], given.get("actions"), given.get("poses"), size)


@lru_cache(maxsize=64)
def cached_world(seed: int) -> World:
    """The world of a seed; never edit its blocks (simulators own copies)."""
    return generate_world(seed)


def _world_seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"options['world_seed'] is {value!r}: expected a whole number of at least 0")
    return int(value)


def _from_world(seed: int, rng: np.random.Generator, length: int, landmark: bool) -> Start:
    world = cached_world(seed)
    target: NDArray[np.float64] | None = None
    if landmark:
        # A world without a landmark in reach (none seen so far) passes the start on to its neighbour.
        while not reachable_starts(world.seed):
            world = cached_world(world.seed + 1)
        starts = reachable_starts(world.seed)
        place, target = starts[int(rng.integers(len(starts)))]
        pose = place.copy()
        pose[4] = wrap_degrees(pose[4] + 15.0 * int(rng.integers(-_WIDEST, _WIDEST + 1)))
    else:
        pose = np.asarray(world.spawn, np.float64).copy()
        pose[3], pose[4] = 0.0, wrap_degrees(15.0 * int(rng.integers(24)))
    plan = context_plan(rng, length) if length < SHORTEST else tour_of_length(world, pose, length)
    start = _walk(world, pose, plan, target)
    if target is not None and not _in_reach(start.poses[-1], target):
        # The way back was blocked: look around only.
        start = _walk(world, pose, context_plan(rng, length, walk=False), target)
    return start


def context_plan(rng: np.random.Generator, length: int, walk: bool = True) -> NDArray[np.float32]:
    """Actions of a context: no-ops, a look around, a way out and back that ends where it began.

    Args:
        rng: Picks sides and turns.
        length: Frames, at least 1.
        walk: Leave out the walk if False.

    Returns:
        float32 [length, 25].
    """
    side = float(rng.choice([-1.0, 1.0]))
    bend = int(rng.integers(-3, 4))
    look = [press(Action.CAMERA_YAW, side)] * _LOOK
    plan = [noop()]
    spare = length - 1 - _LOOK
    if spare < 0:
        half = (length - 1) // 2
        turns = look[:half]
        plan += [*turns, *[press(Action.CAMERA_YAW, -side)] * half]
        return np.stack([noop()] * (length - len(plan)) + plan)
    plan += look
    steps = spare // 2 - abs(bend)
    if walk and steps >= 2:
        turn = [press(Action.CAMERA_YAW, float(np.sign(bend)))] * abs(bend)
        unturn = [press(Action.CAMERA_YAW, -float(np.sign(bend)))] * abs(bend)
        first, second = steps // 2, steps - steps // 2
        ahead, back = press(Action.FORWARD), press(Action.BACK)
        plan += [*[ahead] * first, *turn, *[ahead] * second, *[back] * second, *unturn, *[back] * first]
    return np.stack([noop()] * (length - len(plan)) + plan)


@lru_cache(maxsize=1024)
def reachable_starts(seed: int) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
    """Starts from which walking straight on reaches a landmark; a function of the world seed alone.

    Returns:
        Pairs of a pose [5] that faces the landmark (to 7.5 degrees) from 8 to 14 blocks, and the landmark [3].
    """
    world = cached_world(seed)
    rng = np.random.default_rng([seed, 1])
    poses, targets = _candidates(world, rng)
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for begin in range(0, len(poses), _BATCH):
        part = slice(begin, begin + _BATCH)
        arrived = _walks_there(world, poses[part], targets[part])
        found += [(p, t) for p, t, ok in zip(poses[part], targets[part], arrived, strict=True) if ok]
        if len(found) >= _ENOUGH:
            break
    return tuple(found)


def _candidates(world: World, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    poses: list[list[float]] = []
    targets: list[list[float]] = []
    marks = world.landmarks
    for _ in range(8 * _TRIES):
        if not marks or len(poses) == _TRIES:
            break
        mark = marks[int(rng.integers(len(marks)))]
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(_NEAREST + 0.7, _FURTHEST - 0.7)
        x, z = int(np.floor(mark.x + distance * np.cos(angle))), int(np.floor(mark.z + distance * np.sin(angle)))
        if not (2 <= x < world.blocks.shape[0] - 2 and 2 <= z < world.blocks.shape[1] - 2):
            continue
        height = world.ground(x, z)
        if height is None or abs(height - mark.y) > 6:
            continue
        heading = np.degrees(np.arctan2(-(mark.x - x - 0.5), mark.z - z - 0.5))
        poses.append([x + 0.5, height, z + 0.5, 0.0, float(wrap_degrees(15.0 * np.round(heading / 15.0)))])
        targets.append([mark.x, mark.y, mark.z])
    return np.array(poses).reshape(-1, 5), np.array(targets, np.float64).reshape(-1, 3)


def _walks_there(world: World, poses: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.bool_]:
    simulator = Simulator.shared([world], np.zeros(len(poses), np.int64), poses)
    actions = np.repeat(press(Action.FORWARD)[None], len(poses), 0)
    arrived = np.zeros(len(poses), np.bool_)
    for _ in range(_LONGEST_WALK):
        offset = simulator.step(actions)[:, [0, 2]] - targets[:, [0, 2]]
        arrived |= np.hypot(*offset.T) <= REACH_DISTANCE
        if arrived.all():
            break
    return arrived


def _in_reach(pose: NDArray[np.float64], target: NDArray[np.float64]) -> bool:
    return _NEAREST <= float(np.hypot(pose[0] - target[0], pose[2] - target[2])) <= _FURTHEST


def _walk(
    world: World, pose: NDArray[np.float64], plan: NDArray[np.float32], landmark: NDArray[np.float64] | None
) -> Start:
    simulator = Simulator([world], pose[None])
    poses = simulator.walk(plan[:, None])[:, 0]
    return Start(plan, poses, None, world, simulator, landmark)


def _from_frames(frames: Any, actions: ArrayLike | None, poses: ArrayLike | None, size: tuple[int, int]) -> Start:
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not len(array):
        raise ValueError(f"options['frames'] is {array.dtype} {array.shape}: expected uint8 [C, H, W, 3] with C >= 1")
    count = len(array)
    vectors = np.zeros((count, ACTION_DIM), np.float32) if actions is None else validate_vector(actions)
    if vectors.shape != (count, ACTION_DIM):
        raise ValueError(f"options['actions'] has shape {vectors.shape}: expected [{count}, 25], one row a frame")
    if poses is None:
        # Nothing else is known: dead reckoning from pose 0.
        reckoned = [np.zeros(5)]
        for action in vectors[1:]:
            reckoned.append(integrate_kinematic(reckoned[-1], action))
        where = np.stack(reckoned)
    else:
        where = validate_poses(poses, "options['poses']")
    if where.shape != (count, 5):
        raise ValueError(f"options['poses'] has shape {where.shape}: expected [{count}, 5], one row a frame")
    return Start(vectors, where, fit_frames(array, *size))


def _load_image(source: Any) -> NDArray[np.uint8]:
    if not isinstance(source, str | Path):
        array = np.asarray(source)
        if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
            raise ValueError(f"options['image'] is {array.dtype} {array.shape}: expected a path or uint8 [H, W, 3]")
        return array
    from PIL import Image, UnidentifiedImageError

    if not Path(source).is_file():
        raise FileNotFoundError(f"options['image']: {source} does not exist")
    try:
        with Image.open(source) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"options['image']: {source} is no readable image, give a PNG or JPEG") from None
