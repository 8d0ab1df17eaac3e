import pytest
import torch
from decmem_env.kernels import merge_softmax

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is chosen without a GPU")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def make(device, dtype, dim=24):
    rng = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 35, dim, generator=rng) for _ in range(2))
    one_lse, other_lse = (4.0 * torch.randn(2, 3, 35, generator=rng) for _ in range(2))
    other[0, 0, :7], other_lse[0, 0, :7] = 0.0, -torch.inf
    return [x.to(device) for x in (one.to(dtype), one_lse, other.to(dtype), other_lse)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_equals_the_definition_with_gradients(device, dtype):
    given = make(device, dtype)
    weight = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    results = []
    for backend in ("naive", "triton"):
        leaves = [x.clone().requires_grad_() for x in given]
        out = merge_softmax(*leaves, backend=backend)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(*results, strict=True):
        assert b.isfinite().all() and a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance)


def test_merging_two_halves_is_attention_over_both():
    rng = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, n, 8, generator=rng) for n in (5, 12, 12))
    logits = q @ k.mT
    parts = [(logits[..., s].softmax(-1) @ v[:, :, s], logits[..., s].logsumexp(-1)) for s in (slice(7), slice(7, 12))]
    merged = merge_softmax(*parts[0], *parts[1])
    assert torch.allclose(merged, logits.softmax(-1) @ v, atol=1e-6)


def test_shapes_are_checked():
    one, lse, other, other_lse = make("cpu", torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        merge_softmax(one, lse[:1], other, other_lse)
    with pytest.raises(ValueError, match="unknown backend"):
        merge_softmax(one, lse, other, other_lse, backend="cuda")
