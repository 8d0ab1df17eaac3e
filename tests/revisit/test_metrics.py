import math

import numpy as np
import pytest
import torch

from decmem_env import metrics

RNG = np.random.default_rng(0)


def test_psnr_by_hand():
    a = np.zeros((3, 4, 5, 3), np.uint8)
    b = a.copy()
    b[1] = 51  # error 0.2 everywhere: mse 0.04
    b[2, 0, 0, 0] = 255  # one of 60 values off by 1: mse 1/60
    got = metrics.psnr(a, b)
    assert got[0] == metrics.PSNR_CAP
    assert got[1].item() == pytest.approx(-10 * math.log10(0.04), abs=1e-4)
    assert got[2].item() == pytest.approx(10 * math.log10(60), abs=1e-4)


def test_masked_psnr_counts_only_the_mask():
    a = np.zeros((2, 4, 5, 3), np.uint8)
    b = a.copy()
    b[:, :2] = 51
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0, 1] = True
    got = metrics.psnr(a, b, mask, cap=metrics.MASKED_PSNR_CAP)
    assert got[0].item() == pytest.approx(-10 * math.log10(0.04), abs=1e-4)
    assert torch.isnan(got[1])
    mask[1, 3] = True
    assert metrics.psnr(a, b, mask, cap=50.0)[1] == 50.0


def reference_ssim(x, y):
    """Plain loops over windows, from the formula of Wang et al. 2004."""
    offsets = np.arange(11) - 5
    g = np.exp(-(offsets**2) / (2 * 1.5**2))
    g = np.outer(g, g) / np.outer(g, g).sum()
    values = []
    for c in range(3):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                mp, mq = (g * p).sum(), (g * q).sum()
                vp, vq = (g * (p - mp) ** 2).sum(), (g * (q - mq) ** 2).sum()
                cov = (g * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_against_plain_loops():
    a = RNG.integers(0, 256, (1, 16, 18, 3), np.uint8)
    b = np.clip(a.astype(int) + RNG.integers(-40, 40, a.shape), 0, 255).astype(np.uint8)
    expected = reference_ssim(a[0] / 255.0, b[0] / 255.0)
    assert metrics.ssim(a, b).item() == pytest.approx(expected, abs=2e-5)
    assert metrics.ssim(a, a).item() == pytest.approx(1.0, abs=1e-5)


def test_sharpness_by_hand():
    frame = np.zeros((1, 4, 6, 3), np.uint8)
    frame[0, :, 3:] = 255  # one vertical edge: 4 of 20 horizontal differences are 1
    assert metrics.sharpness(frame).item() == pytest.approx(4 / 20, abs=1e-6)
    flipped = frame.transpose(0, 2, 1, 3).copy()
    assert metrics.sharpness(flipped).item() == pytest.approx(4 / 20, abs=1e-6)
    green = np.zeros((1, 4, 6, 3), np.uint8)
    green[0, :, 3:, 1] = 255
    assert metrics.sharpness(green).item() == pytest.approx(0.587 * 4 / 20, abs=1e-6)


def test_bootstrap_resamples_worlds_not_frames():
    # 40 worlds, 10 equal frames each: the spread is that of 40 values, not of 400.
    world_values = RNG.normal(20, 2, 40)
    got = metrics.bootstrap(np.repeat(world_values, 10), np.repeat(np.arange(40), 10))
    half = (got.high - got.low) / 2
    assert got.mean == pytest.approx(world_values.mean())
    assert (got.count, got.groups) == (400, 40)
    assert half == pytest.approx(1.96 * world_values.std() / math.sqrt(40), rel=0.15)


def test_bootstrap_is_a_mean_over_frames_and_skips_nan():
    got = metrics.bootstrap([1.0, 1.0, 1.0, 5.0, math.nan], [0, 0, 0, 1, 1])
    assert got.mean == 2.0 and got.count == 4
    empty = metrics.bootstrap([], [])
    assert math.isnan(empty.mean) and empty.count == 0


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr(np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="equal shapes"):
        metrics.psnr(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8))
