"""The voxel worlds of a test and the scripts in them, built on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .edit_scripts import KINDS as EDIT_KINDS
from .edit_scripts import EditScript, build_edit_scripts
from .scripts import Script, build_long_run, build_world_scripts

_T = TypeVar("_T")
_FEW = 12  # worlds that are built faster here than in processes that must start first


@dataclass(frozen=True, eq=False)
class Course:
    """Worlds and what is walked in them.

    Attributes:
        blocks: uint8 [X, Z, Y] by world seed.
        scripts: In the order of kinds, then worlds (equal lengths together).
        missing: (world seed, kind) for which no draw returned in time.
    """

    blocks: dict[int, torch.Tensor]
    scripts: list[Script]
    missing: list[tuple[int, str]]


def build_course(
    seeds: Sequence[int],
    kinds: Sequence[str],
    gap: int,
    *,
    long_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Course:
    """Build every world and its scripts; the result depends on the arguments alone.

    Args:
        seeds: World seeds.
        kinds: Of `scripts.KINDS`; ignored for a long run.
        gap: Frames away; ignored for a long run.
        long_run: Build the long loop instead.
        progress: Called once a world.

    Returns:
        The course.
    """
    build = partial(_build, kinds=tuple(kinds), gap=gap, long_run=long_run)
    blocks: dict[int, torch.Tensor] = {}
    scripts: list[Script] = []
    missing: list[tuple[int, str]] = []
    wanted = ("long_run",) if long_run else tuple(kinds)
    for seed, (found, walked) in zip(seeds, _spread(build, seeds), strict=True):
        blocks[seed] = torch.from_numpy(found)
        scripts += walked
        missing += [(seed, kind) for kind in wanted if kind not in {script.kind for script in walked}]
        if progress is not None:
            progress(1)
    scripts.sort(key=lambda script: wanted.index(script.kind))  # stable: worlds stay in order
    return Course(blocks, scripts, missing)


def build_edit_course(
    seeds: Sequence[int], count: int, unseen: int, progress: Callable[[int], None] | None = None
) -> tuple[dict[int, torch.Tensor], list[EditScript]]:
    """Build every world and its scripts with edits.

    Args:
        seeds: World seeds.
        count: Scripts of each kind in each world.
        unseen: Frames out of sight.
        progress: Called once a world.

    Returns:
        uint8 [X, Z, Y] by world seed, and the scripts in the order of kinds, then worlds.
    """
    blocks: dict[int, torch.Tensor] = {}
    scripts: list[EditScript] = []
    build = partial(_build_edits, count=count, unseen=unseen)
    for seed, (found, walked) in zip(seeds, _spread(build, seeds), strict=True):
        blocks[seed] = torch.from_numpy(found)
        scripts += walked
        if progress is not None:
            progress(1)
    scripts.sort(key=lambda item: EDIT_KINDS.index(item.script.kind))  # stable: worlds stay in order
    return blocks, scripts


def _build_edits(seed: int, count: int, unseen: int) -> tuple[NDArray[np.uint8], list[EditScript]]:
    from ..worlds import generate_world

    world = generate_world(seed)
    return world.blocks, build_edit_scripts(world, count, unseen)


def _build(seed: int, kinds: tuple[str, ...], gap: int, long_run: bool) -> tuple[NDArray[np.uint8], list[Script]]:
    from ..worlds import generate_world

    world = generate_world(seed)
    if long_run:
        script = build_long_run(world)
        return world.blocks, [] if script is None else [script]
    return world.blocks, build_world_scripts(world, kinds, gap)


def _spread(
    build: Callable[[int], tuple[NDArray[np.uint8], list[_T]]], seeds: Sequence[int]
) -> Iterator[tuple[NDArray[np.uint8], list[_T]]]:
    workers = min(os.cpu_count() or 1, len(seeds) // 2, 16)
    if workers < 4 or len(seeds) <= _FEW:
        yield from map(build, seeds)
        return
    # Fresh processes: a fork would inherit CUDA and thread pools.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(build, seeds, chunksize=2)
