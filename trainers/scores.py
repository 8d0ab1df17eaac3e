"""Figures of the evaluation at the end of a stage."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decmem_env.conventions.poses import is_exact, is_near

from .data.splice import RECENT


def psnr_per_frame(frames: Tensor, truth: Tensor) -> Tensor:
    """PSNR in dB (range 255, at most 80) of uint8 frames [N, H, W, 3] against the truth, float32 [N]."""
    error = (frames.float() - truth.float()).square().mean((1, 2, 3))
    return (10.0 * torch.log10(255.0**2 / error.clamp_min(1e-9))).clamp_max(80.0)


def summarise(scores: NDArray[np.floating]) -> dict[str, float]:
    """Mean, mean of the worst tenth, count."""
    worst = np.sort(scores)[: max(1, len(scores) // 10)]
    return {"psnr_db": float(scores.mean()), "worst_decile_db": float(worst.mean()), "frames": float(len(scores))}


def revisit_kinds(poses: NDArray[np.float64]) -> NDArray[np.int64]:
    """What each frame of a clip asks of memory.

    Args:
        poses: [T, 5].

    Returns:
        int64 [T]: 2 = an exact view, 1 = a near view of a frame more than `RECENT` back that no recent frame shows,
        0 = anything else.
    """
    kinds = np.zeros(len(poses), np.int64)
    for i in range(RECENT + 1, len(poses)):
        if is_near(poses[i], poses[i - RECENT : i]).any():
            continue
        old = poses[: i - RECENT]
        kinds[i] = 2 if is_exact(poses[i], old).any() else int(is_near(poses[i], old).any())
    return kinds
