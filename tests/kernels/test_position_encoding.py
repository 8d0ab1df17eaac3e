"""The fused encoding of q, k and v into pages (in Triton's interpreter without a GPU) against the plain functions."""

import numpy as np
import pytest
import torch
from decmem_env.kernels.position_encoding import op
from decmem_env.model import pointwise
from decmem_env.model.config import preset
from decmem_env.model.memory import PagePool, page_bytes
from decmem_env.model.position import Positions, positions, spatial_angles

from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


SIZES = pytest.mark.parametrize("name", ["wan-debug", pytest.param("wan-1.3b", marks=pytest.mark.gpu)])
TYPES = pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])


def places(cfg, frames):
    """Positions of frames far apart in space and time."""
    poses = np.random.default_rng(0).normal(size=(frames, 5)) * (9.0, 1.0, 9.0, 20.0, 60.0)
    camera = normalised_intrinsics(cfg.height, cfg.frame_width, cfg.vertical_fov)
    pair = projective_matrices(poses, camera, poses[0], translation_scale=cfg.translation_scale)
    matrices = [torch.from_numpy(m.astype(np.float32))[None].to(DEVICE) for m in pair]
    index = torch.tensor([[5, 900, 70000, 8, 9, 10][:frames]], device=DEVICE)
    return positions(cfg, spatial_angles(cfg).to(DEVICE), *matrices, index)


def sized(name):
    cfg = preset(name)
    return cfg.with_overrides(heads=2, width=256, depth=1) if name == "wan-1.3b" else cfg


@SIZES
@TYPES
def test_encoding_equals_the_plain_functions(name, dtype, bound):
    cfg, batch, frames = sized(name), 2, 3
    torch.manual_seed(0)
    budget = (cfg.window + 4 * cfg.chunk) * page_bytes(cfg, dtype)
    pools = [PagePool(cfg, torch.device(DEVICE), dtype, budget) for _ in range(2)]
    for pool in pools:
        for tensor in pool.pages(0):
            tensor.fill_(7.0)
    inner = cfg.heads * cfg.head_dim
    mixed = torch.randn(batch, frames, cfg.tokens, 4 * inner, device=DEVICE, dtype=dtype)
    norm = torch.rand(2, 1, cfg.heads, cfg.head_dim, device=DEVICE) + 0.5
    where = places(cfg, batch * frames)
    slots = torch.tensor([4, 0, 9, 7, 1, 2], device=DEVICE)

    wanted = pointwise.encode(mixed.flatten(0, 1), norm, where, cfg)
    pools[0].write(0, slots, wanted.k, wanted.v, wanted.k_means)
    parts = [t.flatten(0, 1) for t in (where.query, where.key, where.cos, where.sin)]
    found = op.encode(mixed, norm, *parts, pools[1].pages(0), slots, cfg.block_tokens, cfg.tokens - cfg.padding)
    pairs = [
        *((x.transpose(1, 2).flatten(0, 1), y) for x, y in zip(found, (wanted.q, wanted.q_means), strict=True)),
        *zip(pools[1].pages(0), pools[0].pages(0), strict=True),
    ]
    for got, expected in pairs:
        assert got.shape == expected.shape and got.dtype == expected.dtype
        torch.testing.assert_close(got.float(), expected.float(), rtol=bound, atol=bound)
    untouched = [slot for slot in range(pools[0].capacity) if slot not in slots.tolist()]
    assert untouched and all((tensor[:, untouched] == 7.0).all() for tensor in pools[1].pages(0))


@SIZES
@TYPES
@pytest.mark.parametrize(("gate", "kept"), [("linear", 3), ("sigmoid", 1), (None, 2)])
def test_merging_equals_the_plain_functions(name, dtype, bound, gate, kept):
    cfg, batch, frames = sized(name), 2, 3
    cfg = cfg.with_overrides(gate=gate, gate_init=0.5) if gate else cfg
    torch.manual_seed(0)
    inner = cfg.heads * cfg.head_dim
    mixed = torch.randn(batch, frames, cfg.tokens, 4 * inner, device=DEVICE, dtype=dtype)
    shape = (batch, cfg.heads, kept * cfg.tokens, cfg.head_dim)
    local, other = (torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(2))
    retrieved = None if gate is None else other
    where = places(cfg, batch * frames)
    start = frames - kept
    rows = Positions(*(t.flatten(0, 1).unflatten(0, (batch, frames))[:, start:] for t in where))
    opened = None if gate is None else mixed[:, start:, :, 3 * inner :]
    wanted = pointwise.decode(local, retrieved, opened, rows, cfg)
    matrices = where.output.flatten(0, 1)
    found = op.merge(local, retrieved, mixed, matrices, cfg.camera_channels, cfg.gate == "sigmoid")
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    torch.testing.assert_close(found.float(), wanted.float(), rtol=bound, atol=bound)


@pytest.mark.gpu
def test_activation_at_the_end_of_the_product():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 128, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(256, 128, device="cuda").bfloat16() / 8, torch.randn(256, device="cuda").bfloat16()
    found, wanted = pointwise.up_fused(x, weight, bias), pointwise.up(x.float(), weight.float(), bias.float())
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 5e-3
