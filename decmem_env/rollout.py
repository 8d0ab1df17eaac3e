"""Roll a model out along given actions and poses, many sessions in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .hand_reader import HandReader

Progress = Callable[[int], None]  # called with the number of frames done since the last call


def roll_out(
    model: Any,
    sessions: Sequence[Any],
    actions: NDArray[np.float32],
    poses: NDArray[np.float64],
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    hands: HandReader | None = None,
) -> torch.Tensor:
    """Generate T frames in every session, all sessions in one forward pass a step.

    Args:
        model: A `WorldModel`.
        sessions: n sessions with their context observed.
        actions: [n, T, 25]; `actions[:, t]` leads to frame t.
        poses: [n, T, 5], the pose of each frame.
        device: Where the frames are kept.
        progress: Called after each step with the frames it made.
        hands: Knows which cells hands meet; None: nobody does.

    Returns:
        uint8 [n, T, H, W, 3].

    Raises:
        ValueError: Shapes that do not fit each other.
    """
    count, length = actions.shape[:2]
    if count != len(sessions) or poses.shape[:2] != (count, length):
        raise ValueError(
            f"{len(sessions)} sessions, actions {actions.shape}, poses {poses.shape}: expected [n, T, 25] and [n, T, 5]"
        )
    chunk = frames_per_step(model)
    frames: torch.Tensor | None = None
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        acts, places = _whole(actions[:, start:stop], poses[:, start:stop], chunk)
        cells = {} if hands is None else {"cells": hands.act(acts, places)}
        made = model.step(list(sessions), acts, places, **cells)
        if hands is not None:
            hands.see(sessions)
        made = torch.as_tensor(made, device=device)[:, : stop - start]
        if frames is None:
            frames = torch.empty((count, length, *made.shape[2:]), dtype=torch.uint8, device=device)
        frames[:, start:stop] = made
        if progress is not None:
            progress(count * (stop - start))
    if frames is None:
        raise ValueError("no frames to generate: the action script is empty")
    return frames


def _whole(
    actions: NDArray[np.float32], poses: NDArray[np.float64], chunk: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Fill a last partial chunk with standing still; its frames are cut off."""
    lack = [(0, 0), (0, chunk - actions.shape[1]), (0, 0)]
    return np.pad(actions, lack), np.pad(poses, lack, mode="edge")


def frames_per_step(model: Any) -> int:
    """Frames of one model chunk."""
    return int(getattr(model, "frames_per_step", 1))


def whole_context(
    model: Any, frames: NDArray[np.uint8], actions: NDArray[np.float32], poses: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float64]]:
    """Lengthen a context of a new session to whole chunks, with copies of its first frame in front.

    Args:
        model: A `WorldModel`; it observes a multiple of its chunk: of 16 frames less 3 with the Wan VAE and chunks of
            4, since a video's first latent is a single frame.
        frames: [C, H, W, 3], any C of at least 1.
        actions: [C, 25].
        poses: [C, 5].

    Returns:
        The same three, as long as `Session.observe` wants them.
    """
    pad = np.maximum(np.arange(-lacking_frames(model, len(frames)), len(frames)), 0)
    return frames[pad], actions[pad], poses[pad]


def lacking_frames(model: Any, count: int) -> int:
    """Frames by which a new session's context of `count` frames falls short of whole chunks."""
    alone = int(model.config.frames_per_latent) - 1
    return -(count + alone) % frames_per_step(model)


def frame_size(model: Any) -> tuple[int, int]:
    """Height and width of a model's frames in pixels."""
    return int(model.config.height), int(model.config.frame_width)


def decoded_truth(model: Any, frames: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """What the model's autoencoder makes of true frames: the bound of every score.

    Args:
        model: A `WorldModel`.
        frames: uint8 [N, H, W, 3].
        chunk: Frames at a time, a multiple of 4.

    Returns:
        uint8 [N, H, W, 3] on the frames' device.
    """
    stream = model.autoencoder.stream()
    group = stream.encoder.frames_per_latent
    # A latent takes whole groups of frames behind a single first one: repeat the last frame, and cut it off again.
    lack = -(len(frames) - 1) % group
    whole = torch.cat([frames, frames[-1:].expand(lack, *frames.shape[1:])])
    lead = len(whole) % group
    parts = []
    for part in (whole[:lead], *whole[lead:].split(chunk)):
        if len(part):
            parts.append(stream.decode(stream.encode(part.to(model.device))).to(frames.device))
    return torch.cat(parts)[: len(frames)]
