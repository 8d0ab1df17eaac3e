"""Gated residual and modulated norm in one pass (in Triton's interpreter without a GPU) against the plain functions."""

import pytest
import torch
from decmem_env.kernels.modulated_norm import modulated_norm, residual_modulated_norm
from decmem_env.model import pointwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])


def stream(frames, start, width=96):
    """The last frames of a stream far from zero, a change, and vectors cut from those of all frames."""
    torch.manual_seed(0)
    x = torch.randn(2, frames, 7, width, device=DEVICE) * 3.0 + 40.0
    vectors = torch.randn(3, 1, frames, 1, width, device=DEVICE)
    return x[:, start:], torch.randn_like(x[:, start:]), *(v[:, start:] for v in vectors)


@TYPES
@pytest.mark.parametrize("start", [0, 2])
def test_residual_and_norm_equal_the_plain_functions(dtype, bound, start):
    x, change, gate, shift, scale = stream(5, start)
    change = change.to(dtype)
    before = x.clone()
    wanted = pointwise.residual_modulated(x, gate, change, shift, scale, dtype)
    found = residual_modulated_norm(x, gate, change, shift, scale, dtype)
    assert [t.dtype for t in found] == [torch.float32, dtype] and torch.equal(x, before)
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1].float(), wanted[1].float(), rtol=bound, atol=bound)


@TYPES
def test_norm_equals_the_plain_function(dtype, bound):
    x, _, _, shift, scale = stream(3, 1)
    found, wanted = (f(x, shift, scale, dtype) for f in (modulated_norm, pointwise.modulated))
    assert found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.float(), wanted.float(), rtol=bound, atol=bound)


def test_what_does_not_fit_is_refused():
    x, change, gate, shift, scale = stream(3, 0)
    with pytest.raises(ValueError, match="x is torch.bfloat16"):
        modulated_norm(x.bfloat16(), shift, scale, torch.float32)
    with pytest.raises(ValueError, match=r"scale is torch.float32 \(1, 2, 1, 96\): expected fp32 \(1, 3, 1, 96\)"):
        modulated_norm(x, shift, scale[:, 1:], torch.float32)
    with pytest.raises(ValueError, match="change is"):
        residual_modulated_norm(x, gate, change[:, 1:], shift, scale, torch.float32)
