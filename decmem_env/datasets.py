"""Clips of voxel worlds in WorldMem's format, and the CSV index of a folder of clips (voxel or real)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .results import write_atomically

SPLITS = {
    "training": range(0, 7_000_000),
    "validation": range(7_000_000, 7_001_000),
    "test": range(8_000_000, 8_001_000),
}
CSV_NAMES = {"training": "train.csv", "validation": "val.csv", "test": "test.csv"}
_TOGETHER = 16  # worlds simulated and rendered at once


def split_of(seed: int) -> str:
    """Folder that a world's seed belongs to.

    Raises:
        ValueError: The seed lies in no split.
    """
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    raise ValueError(
        f"world seed {seed} lies in no split: training 0-6999999, validation 7000000-7000999, test 8000000-8000999"
    )


def make_clips(
    root: Path,
    *,
    clips: int,
    frames: int,
    seeds: range,
    kind: str = "mixed",
    height: int = 96,
    width: int = 160,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Render clips of voxel worlds.

    Args:
        root: Folder; clips go to its split folders.
        clips: How many; worlds are drawn from `seeds` without repetition while they last.
        frames: Length of each.
        seeds: World seeds to draw from.
        kind: Trajectory kind of `worlds.trajectories`.
        height: Pixels.
        width: Pixels.
        seed: Of the choice of worlds and paths.
        device: Of the renderer.
        progress: Called with the number of clips written since the last call.

    Returns:
        The mp4 paths.

    Raises:
        ValueError: A seed outside every split, or an unknown kind.
    """
    from .conventions.clips import Clip, write_clip
    from .worlds import Renderer, generate_world
    from .worlds.edited import render_edited
    from .worlds.trajectories import sample_trajectories

    split_of(seeds[0]), split_of(seeds[-1])
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(seeds), clips, replace=clips > len(seeds))
    renderer = Renderer(height=height, width=width, device=device)
    paths: list[Path] = []
    for start in range(0, clips, _TOGETHER):
        world_seeds = [seeds[int(i)] for i in chosen[start : start + _TOGETHER]]
        worlds = [generate_world(s) for s in world_seeds]
        walked = sample_trajectories(worlds, frames, rng, kind=kind, grid=bool(start // _TOGETHER % 2 == 0))
        for row, (world_seed, world) in enumerate(zip(world_seeds, worlds, strict=True)):
            blocks = torch.as_tensor(world.blocks)[None].to(device, copy=True)  # edits are drawn into it
            rgb = render_edited(renderer, blocks, walked.poses[row], walked.edits[row]).cpu().numpy()
            path = root / split_of(world_seed) / f"world{world_seed:07d}_{start + row:05d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, Clip(rgb, walked.actions[row], walked.poses[row], 10.0))
            paths.append(path)
            if progress is not None:
                progress(1)
    return paths


def index_clips(root: Path, seed: int = 42) -> dict[Path, int]:
    """Write one CSV (`video_path,action_path`) a split folder, rows in an order shuffled with the seed.

    Paths are relative to `root`. A clip without its npz is an error, not a silent gap.

    Returns:
        Rows by CSV path.

    Raises:
        FileNotFoundError: No split folder, no clips, or an mp4 without its npz.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: --root names the one that holds training/, validation/, test/")
    written: dict[Path, int] = {}
    for split, name in CSV_NAMES.items():
        videos = sorted((root / split).rglob("*.mp4"))
        if not videos:
            continue
        _check_pairs(videos)
        order = np.random.default_rng(seed).permutation(len(videos))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("video_path", "action_path"))
        for i in order:
            video = videos[int(i)].relative_to(root)
            writer.writerow((video.as_posix(), video.with_suffix(".npz").as_posix()))
        written[write_atomically(root / name, text.getvalue().encode())] = len(videos)
    if not written:
        raise FileNotFoundError(f"{root} holds no clips: expected {', '.join(f'{s}/**/*.mp4' for s in SPLITS)}")
    return written


def _check_pairs(videos: Sequence[Path]) -> None:
    missing = [video for video in videos if not video.with_suffix(".npz").is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}{more} has no .npz beside it: delete the clip or fetch its actions")
