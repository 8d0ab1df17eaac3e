"""Picture metrics: PSNR (plain and masked), SSIM, sharpness, the bootstrap over worlds, and the Frechet distance.

Those of pictures take uint8 frames [N, H, W, 3] (numpy or torch, any device) and return one float per frame. A score
of a set is the mean over frames of the per-frame value, never the value of a pooled error (`WorldMem` has used both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

Frames = torch.Tensor | NDArray[np.uint8]

# Identical frames have no finite PSNR; one grey level in one value of a 96x160 frame is 94.8 dB.
PSNR_CAP = 100.0
MASKED_PSNR_CAP = 50.0
# Values converted to float at a time: on a CPU few enough to stay in cache and out of mmap.
_VALUES_CUDA, _VALUES_CPU = 1 << 25, 1 << 19


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval over groups (worlds)."""

    mean: float
    low: float
    high: float
    count: int
    groups: int


def as_frames(frames: Frames, name: str = "frames") -> torch.Tensor:
    """Check frames and return them as a uint8 tensor [N, H, W, 3] on their own device.

    Raises:
        ValueError: Not uint8 or not [N, H, W, 3].
    """
    if isinstance(frames, np.ndarray) and not frames.flags.writeable:
        frames = frames.copy()  # torch warns about read-only memory
    tensor = torch.as_tensor(frames)
    if tensor.dtype != torch.uint8 or tensor.ndim != 4 or tensor.shape[-1] != 3:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}: expected uint8 [N, H, W, 3]")
    return tensor


def psnr(frames: Frames, truth: Frames, mask: torch.Tensor | None = None, cap: float = PSNR_CAP) -> torch.Tensor:
    """Per-frame peak signal-to-noise ratio in dB, range 1, all pixels and channels pooled within a frame.

    Args:
        frames: uint8 [N, H, W, 3].
        truth: uint8 [N, H, W, 3].
        mask: bool [N, H, W]; only these pixels count. A frame without any gets NaN.
        cap: Upper limit in dB.

    Returns:
        float32 [N] on the frames' device.
    """
    parts = []
    for a, b, m in _pairs(frames, truth, mask):
        error = (a - b).square_().mean(-1)
        if m is None:
            mse = error.mean((1, 2))
        else:
            weight = m.to(error.dtype)
            mse = (error * weight).sum((1, 2)) / weight.sum((1, 2))  # 0 / 0 = NaN: nothing to score
        parts.append((-10.0 * torch.log10(mse.clamp_min(1e-12))).clamp_max(cap))
    return torch.cat(parts) if parts else torch.zeros(0)


def mean_squared_error(frames: Frames, truth: Frames) -> torch.Tensor:
    """Per-frame mean squared error, range 1, float32 [N]."""
    parts = [(a - b).square_().mean((1, 2, 3)) for a, b, _ in _pairs(frames, truth, None)]
    return torch.cat(parts) if parts else torch.zeros(0)


def ssim(frames: Frames, truth: Frames) -> torch.Tensor:
    """Per-frame structural similarity (Wang et al. 2004): Gaussian window 11, sigma 1.5, range 1, mean over channels.

    Only windows that lie wholly inside the frame count.

    Returns:
        float32 [N], at most 1.
    """
    parts = [_ssim(a, b) for a, b, _ in _pairs(frames, truth, None)]
    return torch.cat(parts) if parts else torch.zeros(0)


def sharpness(frames: Frames) -> torch.Tensor:
    """Mean |dx| + |dy| of forward differences of the luma (Rec. 601, range 1), float32 [N].

    Compare it with the autoencoder-decoded truth of the same poses; above 1 is noise, below 1 is blur.
    """
    tensor = as_frames(frames)
    weights = torch.tensor([0.299, 0.587, 0.114], device=tensor.device)
    parts = []
    for chunk in tensor.split(_frames_at_once(tensor)):
        luma = (chunk.float() / 255.0) @ weights
        dx = (luma[:, :, 1:] - luma[:, :, :-1]).abs().mean((1, 2))
        dy = (luma[:, 1:] - luma[:, :-1]).abs().mean((1, 2))
        parts.append(dx + dy)
    return torch.cat(parts) if parts else torch.zeros(0)


def bootstrap(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    statistic: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean over values with a 95 % percentile bootstrap that resamples whole groups (worlds).

    Args:
        values: [N]; NaN is left out.
        groups: [N] integer group (world) of each value.
        statistic: Turns group sums and counts [samples, G] into estimates [samples]; the pooled mean when None.
        samples: Bootstrap draws.
        seed: Of the draws, so that a table is reproducible.

    Returns:
        The estimate; all NaN when there is no value.
    """
    value = np.asarray(values, np.float64).reshape(-1)
    group = np.asarray(groups).reshape(-1)
    if value.shape != group.shape:
        raise ValueError(f"bootstrap: {len(value)} values but {len(group)} groups")
    keep = np.isfinite(value)
    value, group = value[keep], group[keep]
    if not len(value):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    names, index = np.unique(group, return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(index, value, len(names)).astype(np.float64)
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    combine = statistic or (lambda s, c: s.sum(-1) / c.sum(-1))
    draws = np.random.default_rng(seed).integers(0, len(names), (samples, len(names)))
    estimates = combine(sums[draws], counts[draws])
    low, high = np.percentile(estimates, [2.5, 97.5])
    mean = float(combine(sums[None], counts[None])[0])
    return Estimate(mean, float(low), float(high), len(value), len(names))


def moments(samples: torch.Tensor) -> NDArray[np.float64]:
    """Sums over samples of the outer products of (1, x): what a Gaussian is fitted to. They add up over parts.

    Args:
        samples: [..., N, C], N samples of C channels.

    Returns:
        float64 [..., C + 1, C + 1]; the corner holds N.
    """
    x = samples.double()
    x = torch.cat([torch.ones_like(x[..., :1]), x], -1)
    return (x.transpose(-1, -2) @ x).cpu().numpy()


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Squared Frechet distance of the Gaussians that have these `moments` [C + 1, C + 1]; 0 if they are equal.

    |mean a - mean b|^2 + trace(A + B - 2 sqrt(A B)) with covariances A and B; few samples make it larger.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _gaussian(a), _gaussian(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    # The trace of sqrt(A B) is that of the square root of a symmetric product.
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0.0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * shared)


def _gaussian(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [C] and covariance [C, C] of `moments`."""
    normed = sums / sums[0, 0]
    mean = normed[0, 1:]
    return mean, normed[1:, 1:] - np.outer(mean, mean)


def _frames_at_once(frames: torch.Tensor) -> int:
    values = _VALUES_CUDA if frames.is_cuda else _VALUES_CPU
    return max(1, values // max(1, frames[:1].numel()))


def _pairs(
    frames: Frames, truth: Frames, mask: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield float chunks in [0, 1] of two equal stacks of frames."""
    a, b = as_frames(frames), as_frames(truth, "truth")
    if a.shape != b.shape:
        raise ValueError(f"frames are {tuple(a.shape)} but truth is {tuple(b.shape)}: expected equal shapes")
    if mask is not None and mask.shape != a.shape[:3]:
        raise ValueError(f"mask is {tuple(mask.shape)}: expected bool {tuple(a.shape[:3])}")
    b = b.to(a.device)
    chunk = _frames_at_once(a)
    for start in range(0, len(a), chunk):
        part = slice(start, start + chunk)
        yield (
            a[part].float() / 255.0,
            b[part].float() / 255.0,
            None if mask is None else mask[part].to(a.device),
        )


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of float frames [N, H, W, 3] in [0, 1]."""
    n, height, width, _ = a.shape
    size = min(11, height, width)
    offsets = torch.arange(size, device=a.device, dtype=torch.float32) - (size - 1) / 2
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, window.view(1, 1, size, 1))
        return F.conv2d(x, window.view(1, 1, 1, size))

    x = a.permute(0, 3, 1, 2).reshape(n * 3, 1, height, width)
    y = b.permute(0, 3, 1, 2).reshape(n * 3, 1, height, width)
    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x.square()
    var_y = blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score = score / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return score.mean((1, 2, 3)).reshape(n, 3).mean(1)
