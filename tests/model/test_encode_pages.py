"""The fused encoding of q, k and v into pages (in Triton's interpreter without a GPU) against the plain functions."""

import importlib

import numpy as np
import pytest
import torch
from decmem_env.model import pointwise
from decmem_env.model.config import preset
from decmem_env.model.memory import PagePool, page_bytes
from decmem_env.model.position import channel_order, positions, spatial_angles

from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def op(monkeypatch):
    """The kernel, read again so that it is the interpreter's where there is no GPU."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from decmem_env.kernels.encode_pages import op

    return importlib.reload(op)


@pytest.mark.parametrize("name", ["wan-debug", pytest.param("wan-1.3b", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_equals_the_plain_functions(op, name, dtype):
    cfg = preset(name)
    if name == "wan-1.3b":
        cfg = cfg.with_overrides(heads=2, width=256, depth=1)
    frames, capacity = 3, 9
    torch.manual_seed(0)
    pools = [
        PagePool(cfg, torch.device(DEVICE), dtype, (cfg.window + 4 * cfg.chunk) * page_bytes(cfg, dtype))
        for _ in range(2)
    ]
    for pool in pools:
        for tensor in pool.pages(0):
            tensor.fill_(7.0)
    inner = cfg.heads * cfg.head_dim
    mixed = torch.randn(frames, cfg.tokens, 4 * inner, device=DEVICE, dtype=dtype)
    norm = torch.rand(2, 1, cfg.heads, cfg.head_dim, device=DEVICE) + 0.5
    poses = np.random.default_rng(0).normal(size=(frames, 5)) * (9.0, 1.0, 9.0, 20.0, 60.0)
    camera = normalised_intrinsics(cfg.height, cfg.frame_width, cfg.vertical_fov)
    pair = projective_matrices(poses, camera, poses[0], translation_scale=cfg.translation_scale)
    matrices = [torch.from_numpy(m.astype(np.float32))[None].to(DEVICE) for m in pair]
    index = torch.tensor([[5, 900, 70000]], device=DEVICE)
    where = positions(cfg, spatial_angles(cfg).to(DEVICE), *matrices, index)
    slots = torch.tensor([4, 0, capacity], device=DEVICE)
    assert channel_order(cfg) is not None

    wanted = pointwise.encode(mixed, norm, where, cfg)
    pools[0].write(0, slots, wanted.k, wanted.v, wanted.k_means)
    parts = [t.flatten(0, 1) for t in (where.query, where.key, where.cos, where.sin)]
    q, q_means = op.encode(mixed, norm, *parts, pools[1].pages(0), slots, cfg.block_tokens, cfg.tokens - cfg.padding)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    pairs = [(q, wanted.q), (q_means, wanted.q_means), *zip(pools[1].pages(0), pools[0].pages(0), strict=True)]
    for found, expected in pairs:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        torch.testing.assert_close(found.float(), expected.float(), rtol=bound, atol=bound)
    untouched = [slot for slot in range(pools[0].capacity) if slot not in slots.tolist()]
    assert all((tensor[:, untouched] == 7.0).all() for tensor in pools[1].pages(0))


@pytest.mark.gpu
def test_activation_at_the_end_of_the_product():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 128, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(256, 128, device="cuda").bfloat16() / 8, torch.randn(256, device="cuda").bfloat16()
    found, wanted = pointwise.up_fused(x, weight, bias), pointwise.up(x.float(), weight.float(), bias.float())
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3
