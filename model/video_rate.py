"""Video frames and latents: a causal video autoencoder makes one latent of the first frame, then one of every four.

A latent's action is the actions of its frames, one after the other; its pose is that of its last frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def video_frames(latents: int, stride: int, start: bool) -> int:
    """Frames of `latents` latent frames; the first one of a session is a single frame.

    >>> video_frames(4, 4, start=True), video_frames(4, 4, start=False)
    (13, 16)
    """
    return latents * stride - (stride - 1 if start else 0)


def to_latent_rate(
    actions: NDArray[np.float32], poses: NDArray[np.float64], stride: int, start: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Actions and poses of video frames as those of latent frames.

    Args:
        actions: float32 [..., F, A], F a whole number of latents (`video_frames`).
        poses: float64 [..., F, 5].
        stride: Frames of a latent.
        start: Whether the first frame is the first of its session; its action is repeated to fill its latent.

    Returns:
        float32 [..., T, stride * A] and float64 [..., T, 5].
    """
    if stride == 1:
        return actions, poses
    if start:
        actions = np.concatenate([np.repeat(actions[..., :1, :], stride - 1, -2), actions], -2)
    grouped = actions.reshape(*actions.shape[:-2], -1, stride * actions.shape[-1])
    return grouped, poses[..., 0 if start else stride - 1 :: stride, :]
