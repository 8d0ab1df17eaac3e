"""True clips that a model continues: WorldMem's mp4 + npz brought to the model's size, and the rollout after a prefix.

`decmem infer` and `decmem eval` are both made of this.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .beginnings import fit_frames
from .conventions.clip_index import read_clip_index
from .conventions.clips import Clip, read_clip
from .hand_reader import HandReader
from .rollout import frame_size, frames_per_step, lacking_frames, roll_out
from .start import Start

BAD_START = 100  # frames at the start of WorldMem's videos that its own loader skips
_SAME_SHAPE = 0.03  # sides this close in proportion are resized, as in the paper (360x640 -> 352x640), not cut


@dataclass(frozen=True)
class Generation:
    """How clips are continued; a finished sample is kept only while these stay the same.

    Attributes:
        checkpoint: Name or path.
        sha256: Of the weights.
        memory: `memory`, `dense`, `off` or `window`.
        steps: Denoising steps.
        new_view_steps: The same of frames that show something new (`model.keyframes`).
        guidance: Action guidance scale; 1 is off.
        seed: Of the noise; sample i uses seed + i.
        start_frame: First frame of the clip that is used.
    """

    checkpoint: str
    sha256: str
    memory: str
    steps: int
    new_view_steps: int
    guidance: float
    seed: int
    start_frame: int

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        memory: str = "memory",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        start_frame: int = BAD_START,
    ) -> Generation:
        """Fill in what the model's own config says; a guidance of at most 1 is off, as in the reference."""
        scale = float(model.config.guidance if guidance is None else guidance)
        return cls(
            model.name,
            model.sha256,
            memory,
            int(model.config.steps if steps is None else steps),
            int(model.config.default_new_view_steps if steps is None else steps),
            max(scale, 1.0),
            seed,
            start_frame,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Continued:
    """Generated frames and their timing.

    Attributes:
        frames: uint8 [T, H, W, 3].
        clock: After each chunk, its frames and the seconds since generating began, decoding included.
    """

    frames: NDArray[np.uint8]
    clock: list[tuple[int, float]]

    def first(self, count: int) -> tuple[int, float]:
        """Frames and seconds until at least `count` frames were done (all where there are fewer)."""
        done = np.cumsum([frames for frames, _ in self.clock])
        last = min(int(np.searchsorted(done, count)), len(done) - 1)
        return int(done[last]), self.clock[last][1]

    @property
    def frames_per_second(self) -> float:
        """Over the whole rollout."""
        return sum(n for n, _ in self.clock) / self.clock[-1][1]


def frames_of_latents(model: Any, latents: int) -> int:
    """Video frames that latents stand for: 1 + (latents - 1) * frames of a latent; the first one holds one."""
    return 1 + (latents - 1) * int(model.config.frames_per_latent)


def check_given(model: Any, frames: int) -> None:
    """Refuse given frames that are no whole chunks.

    Raises:
        ValueError: The message names the lengths on either side, in frames and in latents.
    """
    lack = lacking_frames(model, frames)
    if not lack:
        return
    step, stride = frames_per_step(model), int(model.config.frames_per_latent)
    near = [count for count in (frames + lack - step, frames + lack) if count > 0]
    wanted = " or ".join(f"{count} ({(count - 1) // stride + 1} latents)" for count in near)
    raise ValueError(
        f"{frames} given frames are no whole number of {model.name}'s chunks of {step} frames: expected {wanted}"
    )


def clips_of(index: str | os.PathLike[str], count: int | None) -> list[Path]:
    """The first `count` clips of a CSV (all when None).

    Raises:
        FileNotFoundError: The CSV or a clip is missing.
        ValueError: Other columns, fewer clips than asked for, or a row whose two files do not belong together.
    """
    rows = read_clip_index(index)
    if count is not None and count > len(rows):
        raise ValueError(f"{index} names {len(rows)} clips, {count} are asked for: lower the number of samples")
    for video, action in rows[:count]:
        if video.with_suffix(".npz").resolve() != action.resolve():
            raise ValueError(f"{index}: {video.name} and {action.name} must share folder and stem")
    return [video for video, _ in rows[:count]]


def ranks() -> tuple[int, int]:
    """(rank, number of processes) as torchrun sets them; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def share_of(items: Sequence[Any], rank: int, size: int) -> list[tuple[int, Any]]:
    """Every size-th item from `rank` on, with its number."""
    return [(i, item) for i, item in enumerate(items) if i % size == rank]


def read_given(path: Path, start: int, count: int, model: Any) -> Clip:
    """Read frames start ... start + count - 1 of a clip at the model's size, and the rest of its last chunk if there.

    Raises:
        ValueError: The clip is too short.
    """
    chunk = frames_per_step(model)
    clip = read_clip(path, length=start + count + chunk - 1)
    if len(clip) < start + count:
        raise ValueError(
            f"{path} has {len(clip)} frames: frames {start} to {start + count - 1} are needed; choose a smaller "
            "--start-frame, fewer frames, or longer clips"
        )
    part = slice(start, None)
    frames = to_model_size(clip.frames[part], *frame_size(model))
    actions = clip.actions[part].copy()
    actions[0] = 0.0  # nothing led to the first frame that the model sees
    return Clip(frames, actions, clip.poses[part], clip.fps)


def to_model_size(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize frames [T, H, W, 3]; where the proportions differ by more than 3 % the sides are cut first."""
    tall, wide = frames.shape[1:3]
    if (tall, wide) == (height, width):
        return frames
    if abs(wide * height / (tall * width) - 1.0) > _SAME_SHAPE:
        return fit_frames(frames, height, width)
    parts = []
    for start in range(0, len(frames), 64):
        part = torch.from_numpy(np.ascontiguousarray(frames[start : start + 64])).permute(0, 3, 1, 2).float()
        part = torch.nn.functional.interpolate(
            part, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        parts.append(part.round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.cat(parts).contiguous().numpy()


def continue_clip(
    model: Any,
    clip: Clip,
    condition: int,
    count: int,
    how: Generation,
    number: int,
    progress: Callable[[int], None] | None = None,
) -> Continued:
    """Let the model watch the first frames of a clip and generate the next ones along its actions and poses.

    Args:
        model: A `WorldModel`.
        clip: At the model's size.
        condition: True frames that it watches.
        count: Frames to generate after them.
        how: Settings.
        number: Of the sample, for its seed.
        progress: Called with frames watched or generated since the last call.

    Returns:
        The frames and how long they took.
    """
    # Whole chunks are generated along the clip's own actions where it has them, then cut.
    chunk = frames_per_step(model)
    part = slice(condition, min(len(clip), condition + math.ceil(count / chunk) * chunk))
    steps = {"steps": how.steps, "new_view_steps": how.new_view_steps}
    session = model.start(seed=how.seed + number, memory=how.memory, guidance=how.guidance, **steps)
    try:
        session.observe(clip.frames[:condition], clip.actions[:condition], clip.poses[:condition], progress)
        begun = time.perf_counter()
        clock: list[tuple[int, float]] = []

        def note(frames: int) -> None:
            clock.append((frames, time.perf_counter() - begun))
            if progress is not None:
                progress(min(frames, count - sum(n for n, _ in clock[:-1])))

        start = Start(clip.actions[:condition], clip.poses[:condition], clip.frames[:condition])
        hands = HandReader.where_needed(model, [start], clip.actions[part])
        made = roll_out(model, [session], clip.actions[None, part], clip.poses[None, part], progress=note, hands=hands)
        return Continued(made[0, :count].numpy(), clock)
    finally:
        session.close()
