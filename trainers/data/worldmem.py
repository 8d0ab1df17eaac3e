"""Episodes from WorldMem-format clips (mp4 + npz), named by a CSV with the columns video_path,action_path.

Unlike the reference loader: a broken clip is an error that names it, never skipped in silence; windows use the clip's
real length; the first frames (bad in the released videos) are skipped only as far as the clip allows; frames are cut to
the model's aspect ratio before resizing, so that pixels stay square and the vertical field of view stays 70 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from decmem_env.conventions.clip_index import read_clip_index

from ..config import ConfigError
from .stream import Episodes
from .voxel import VALIDATION_JOB


def read_index(path: str | Path) -> list[tuple[Path, Path]]:
    """Read a CSV of clips (`conventions.clip_index`).

    Returns:
        (video, actions) pairs in the file's order.

    Raises:
        ConfigError: The file, a column or a clip is missing.
    """
    try:
        return read_clip_index(path)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.csv={path}: {error}") from None


def fit_frames(frames: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut frames [T, H, W, 3] to the target's aspect ratio around the centre and resize them.

    Args:
        frames: uint8 [T, H, W, 3].
        size: Target (height, width).

    Returns:
        uint8 [T, height, width, 3].

    Raises:
        ConfigError: The frames are too narrow: cutting rows would change the vertical field of view.
    """
    height, width = frames.shape[1:3]
    if (height, width) == size:
        return frames
    wanted = round(height * size[1] / size[0])
    if wanted > width:
        raise ConfigError(
            f"frames of {width}x{height} are narrower than the model's {size[1]}x{size[0]}: cutting rows would change "
            "the vertical field of view; use wider clips"
        )
    left = (width - wanted) // 2
    parts = []
    for start in range(0, len(frames), 64):
        part = torch.from_numpy(frames[start : start + 64, :, left : left + wanted]).permute(0, 3, 1, 2).float()
        part = F.interpolate(part, size, mode="bilinear", antialias=True, align_corners=False)
        parts.append(part.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(parts).numpy()


@dataclass(frozen=True)
class ClipJob:
    """Cut windows out of a random clip; job i is a pure function of (seed, i).

    Attributes:
        clips: Video paths for training.
        held_out: Video paths for validation.
        seed: Of the run.
        length: Frames of a window.
        size: Frame height and width.
        skip: Frames skipped at the start of a clip where it is long enough.
    """

    clips: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int
    length: int
    size: tuple[int, int]
    skip: int = 100

    @classmethod
    def from_csv(cls, path: str, seed: int, length: int, size: tuple[int, int], skip: int) -> ClipJob:
        """Use every twentieth clip of the index for validation (none if there are fewer than two)."""
        rows = read_index(path)
        for video, action in rows:
            if video.with_suffix(".npz").resolve() != action.resolve():
                raise ConfigError(f"{path}: {video.name} and {action.name} must share folder and stem")
        videos = [str(video) for video, _ in rows]
        held = set(range(0, len(videos), 20)) if len(videos) > 1 else set()
        return cls(
            tuple(v for i, v in enumerate(videos) if i not in held),
            tuple(v for i, v in enumerate(videos) if i in held),
            seed,
            length,
            size,
            skip,
        )

    def __call__(self, number: int) -> list[Episodes]:
        """Run job `number`; numbers from `VALIDATION_JOB` on give held-out clips while there are any."""
        from decmem_env.conventions.clips import read_clip

        validation = number >= VALIDATION_JOB
        if validation and number - VALIDATION_JOB >= len(self.held_out):
            return []
        rng = np.random.default_rng([self.seed, number])
        which = number - VALIDATION_JOB if validation else int(rng.integers(len(self.clips)))
        path = (self.held_out if validation else self.clips)[which]
        try:
            clip = read_clip(path)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(str(error)) from None
        total = len(clip.frames)
        if total < self.length:
            raise ConfigError(f"{path} has {total} frames: fewer than data.episode_frames={self.length}; lower it")
        least = min(self.skip, total - self.length)
        # Reading is the expensive part, so every window that fits is used, from a random start on.
        count = (total - least) // self.length
        start = least if validation else int(rng.integers(least, total - count * self.length + 1))
        episodes = []
        for window in (slice(start + i * self.length, start + (i + 1) * self.length) for i in range(count)):
            frames = fit_frames(np.asarray(clip.frames[window]), self.size)
            actions, poses = np.asarray(clip.actions[window], np.float32), np.asarray(clip.poses[window], np.float64)
            episodes.append(Episodes(which, actions[None], poses[None], frames=frames[None]))
        return episodes
