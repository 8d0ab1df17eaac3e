"""The passes between the convolutions of Wan's autoencoder against their definition."""

import pytest
import torch
from decmem_env.kernels import channel_norm
from decmem_env.kernels.channel_norm.naive import add_bias_naive, norm_silu_join_naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def kernels_run(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(channel_norm, "has_kernel", lambda x: True)


def video(batch, channels, frames, dtype, seed=0):
    rows = torch.randn(batch, frames, 3, 5, channels, generator=torch.Generator().manual_seed(seed))
    return (rows + 0.3).to(DEVICE, dtype).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize(("batch", "channels", "frames"), [(1, 96, 4), (2, 24, 1), (2, 192, 3)])
def test_norm_equals_definition(dtype, bound, batch, channels, frames):
    x, past = video(batch, channels, frames, dtype), video(batch, channels, 2, dtype, seed=1)
    gamma = torch.linspace(0.5, 1.5, channels, device=DEVICE, dtype=dtype).view(-1, 1, 1, 1)
    bias = torch.linspace(-1, 1, channels, device=DEVICE, dtype=dtype)
    for before, shift in ((past, bias), (None, None)):
        made = channel_norm.norm_silu_join(x, gamma, before, shift)
        exact = norm_silu_join_naive(*(None if t is None else t.double() for t in (x, gamma, before, shift)))
        assert made.shape == (batch, channels, frames + 2, 3, 5) and made.dtype == dtype
        assert made.permute(0, 2, 3, 4, 1).is_contiguous()
        assert float((made.double() - exact).norm() / exact.norm()) <= bound
        assert torch.equal(made[:, :, :2], torch.zeros_like(past) if before is None else past)


def test_frames_of_zeros_stay_zeros():
    x = torch.zeros_like(video(1, 24, 2, torch.float32))
    made = channel_norm.norm_silu_join(x, torch.ones(24, 1, 1, 1, device=DEVICE), None)
    assert torch.equal(made, torch.zeros_like(made))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_sum_equals_definition(dtype, bound):
    x, other = video(2, 40, 3, dtype), video(2, 40, 3, dtype, seed=1)
    bias = torch.linspace(-1, 1, 40, device=DEVICE, dtype=dtype)
    exact = add_bias_naive(x.double(), bias.double(), other.double())
    made = channel_norm.add_bias(x, bias, other)
    assert made.data_ptr() == x.data_ptr() and float((made.double() - exact).norm() / exact.norm()) <= bound


def test_plain_path_is_taken_on_the_cpu(monkeypatch):
    monkeypatch.undo()
    x = video(1, 24, 2, torch.float32).cpu()
    assert not channel_norm.has_kernel(x)
    gamma = torch.ones(24, 1, 1, 1)
    assert torch.equal(channel_norm.norm_silu_join(x, gamma, None), norm_silu_join_naive(x, gamma, None))
