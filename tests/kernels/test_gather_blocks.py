"""Copies of listed blocks, by plain operations and by the kernel (in Triton's interpreter without a GPU)."""

import importlib

import pytest
import torch
from decmem_env.kernels.gather_blocks import (
    HostSegments,
    Source,
    dequantise_blocks,
    gather_blocks,
    quantise_blocks,
)

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HEADS, PARTS, BLOCK, DIM, LAYERS, LAYER = 2, 3, 5, 16, 2, 1
FRAMES, PAGES, PER_SEGMENT = 9, 4, 2
SHAPE = (HEADS, PARTS * BLOCK, DIM)


@pytest.fixture
def op(monkeypatch):
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from decmem_env.kernels.gather_blocks import op

    return importlib.reload(op)


def make(dtype, scaled):
    """Frames 0, 2, 4, 6 on the device, the others in three segments on the host, and every frame in fp32."""
    torch.manual_seed(0)
    exact = torch.randn(2, FRAMES, *SHAPE) * torch.rand(2, FRAMES, HEADS, 1, 1).exp()
    stored, scales = exact.to(dtype), None
    if scaled:
        stored, found = quantise_blocks(exact, PARTS)
        scales = found.permute(0, 2, 1, 3).contiguous().to(DEVICE)
        exact = dequantise_blocks(stored, found)
    where = torch.tensor([2, -1, 0, -2, 3, -3, 1, -4, -5], dtype=torch.int32)
    near = torch.empty(2, HEADS, PAGES, *SHAPE[1:], dtype=stored.dtype)
    segments = [torch.zeros(PER_SEGMENT, LAYERS, 2, *SHAPE, dtype=stored.dtype, pin_memory=CUDA) for _ in range(3)]
    for frame, page in enumerate(where.tolist()):
        if page >= 0:
            near[:, :, page] = stored[:, frame]
        else:
            segments[(-1 - page) // PER_SEGMENT][(-1 - page) % PER_SEGMENT, LAYER] = stored[:, frame]
    addresses = torch.tensor([segment.data_ptr() for segment in segments], device=DEVICE)
    host = HostSegments(segments, addresses, PER_SEGMENT, LAYER)
    source = Source(*near.to(DEVICE), where.to(DEVICE), scales, host)
    wanted = exact.to(dtype).unflatten(3, (PARTS, BLOCK)).transpose(1, 2).flatten(2, 3)  # [2, H, F * M, block, D]
    return source, wanted.to(DEVICE)


@pytest.mark.parametrize("kernel", [pytest.param(False, marks=pytest.mark.skipif(CUDA, reason="host memory")), True])
@pytest.mark.parametrize(("dtype", "scaled"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)])
def test_blocks_come_from_wherever_they_are(op, kernel, dtype, scaled):
    source, wanted = make(dtype, scaled)
    blocks = torch.tensor([[26, 0, -1, 13, 4, 9, 25], [3, 22, 8, -1, 0, 17, 5]], dtype=torch.int32, device=DEVICE)
    out = tuple(torch.full((HEADS, 7, BLOCK, DIM), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    count = torch.tensor(5, device=DEVICE)
    if kernel:
        op.gather(source, blocks, out, BLOCK, programs=3, count=count)
    else:
        gather_blocks(source, blocks, out, BLOCK, count=count)
    assert count == 5 + sum(source.where[block // PARTS] < 0 for block in blocks[blocks >= 0].tolist())
    for which, copied in enumerate(out):
        for head in range(HEADS):
            for place, block in enumerate(blocks[head].tolist()):
                expected = 7.0 if block < 0 else wanted[which, head, block]
                assert (copied[head, place] == expected).all()


def test_one_list_serves_all_heads(op):
    source, wanted = make(torch.float32, False)
    blocks = torch.tensor([[1, 24, -1]], dtype=torch.int32, device=DEVICE)
    out = tuple(torch.zeros(HEADS, 3, BLOCK, DIM, device=DEVICE) for _ in range(2))
    op.gather(source, blocks, out, BLOCK)
    for which, copied in enumerate(out):
        assert torch.equal(copied[:, :2], wanted[which][:, [1, 24]])


def test_eight_bits_cost_a_hundredth():
    x = torch.randn(4, 6, 60, 64)
    x[0, 0, :10] = 0.0  # a block of nothing stays nothing
    stored, scales = quantise_blocks(x, 6)
    assert stored.dtype == torch.int8 and scales.shape == (4, 6, 6)
    back = dequantise_blocks(stored, scales)
    assert (back[0, 0, :10] == 0.0).all()
    assert 0.003 < (back - x).norm() / x.norm() < 0.01
    half = scales.repeat_interleave(10, -1)[..., None] / 2
    assert ((back - x).abs() <= half * 1.001 + 1e-7).all()


def test_types_must_agree_without_scales():
    source, _ = make(torch.float32, False)
    out = tuple(torch.zeros(HEADS, 1, BLOCK, DIM, dtype=torch.float16, device=DEVICE) for _ in range(2))
    with pytest.raises(ValueError, match="no scales"):
        gather_blocks(source, torch.zeros(1, 1, dtype=torch.int32, device=DEVICE), out, BLOCK)
