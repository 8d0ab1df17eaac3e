"""The mask that FlexAttention gets is the one that it would build itself from all pairs of tokens."""

import pytest
import torch
from decmem_env.kernels.benchmark_flex import block_mask
from decmem_env.kernels.benchmark_shapes import Shape, frame_mask, from_mask, retrieved
from torch.nn.attention.flex_attention import create_block_mask


@pytest.mark.parametrize("kind", ["memory", "window"])
def test_mask_is_that_of_all_pairs_of_tokens(kind):
    batch, heads, frames = 2, 3, 64
    if kind == "memory":
        lists, counts = retrieved(batch, heads, frames, True, 0, torch.device("cpu"))
        shape = Shape(kind, 10, 10, frames * 60, lists[..., :6].contiguous(), counts.clamp(max=6))
    else:
        lists, counts = from_mask(frame_mask(frames, 2, torch.device("cpu"))[None, None])
        shape = Shape(kind, 60, 60, 2 * frames * 60, lists, counts)
    got = block_mask(shape, batch, heads)
    want = create_block_mask(got.mask_mod, batch, heads, 2 * frames * 60, shape.key_tokens, device="cpu")
    assert got.seq_lengths == want.seq_lengths
    for name in ("kv", "q"):
        counts, order = getattr(got, f"{name}_num_blocks"), getattr(got, f"{name}_indices")
        # Whatever the kernels of FlexAttention read by strides of their own must be contiguous.
        assert counts.is_contiguous() and order.is_contiguous()
        all_counts, all_order = (getattr(want, f"{name}_{what}") for what in ("num_blocks", "indices"))
        full = getattr(want, f"full_{name}_num_blocks")
        if full is None:
            assert torch.equal(counts, all_counts)
        used = torch.arange(order.shape[-1]) < counts[..., None]
        assert used.any() and not used.all()
        marked = torch.zeros(order.shape, dtype=torch.bool).scatter_(-1, order.long(), used)
        wanted = torch.zeros_like(marked)
        for count, index in ((all_counts, all_order), (full, getattr(want, f"full_{name}_indices"))):
            if count is not None:
                there = torch.arange(index.shape[-1]) < count[..., None]
                wanted |= torch.zeros_like(marked).scatter_(-1, index.long(), there)
        assert torch.equal(marked, wanted)
