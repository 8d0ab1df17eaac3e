"""Shares of attention in small and in large weights."""

import pytest
import torch
from decmem_env.model.attention import BlockLists
from decmem_env.model.dispersion import Dispersion, Listed, shares

from .conftest import build, make_walk


def listed(tiles, query_tile, key_tile, **more):
    counts = torch.tensor([[[len(row) for row in tiles]]], dtype=torch.int32)
    width = int(counts.max())
    table = torch.tensor([[[row + [0] * (width - len(row)) for row in tiles]]], dtype=torch.int32)
    return Listed(BlockLists(table, counts), query_tile, key_tile, **more)


def test_shares_of_a_known_softmax():
    """One query, 30 keys: two of weight 0.3, one of 0.04, the rest share 0.36 evenly (below 0.02 each)."""
    weights = torch.tensor([0.3, 0.3, 0.04, *[0.36 / 27] * 27])
    q, keys = torch.ones(1, 1, 1, 1), weights.log()[None, None, :, None]
    found = shares(q, keys, [listed([[0, 1, 2]], 1, 10)], 10, 1)
    assert found["token_negligible"] == pytest.approx(0.36, abs=1e-5)
    assert found["token_critical"] == pytest.approx(0.6, abs=1e-5)
    assert found["block_negligible"] == 0.0 and found["block_critical"] == pytest.approx(1.0, abs=1e-5)
    # Without the first block what is left is even: 20 keys of 0.05, none above it.
    rest = shares(q, keys, [listed([[1, 2]], 1, 10)], 10, 1)
    assert rest["token_negligible"] == 0.0 and rest["block_critical"] == pytest.approx(1.0, abs=1e-5)


def test_parts_share_a_softmax_and_padding_is_never_seen():
    torch.manual_seed(0)
    q, keys = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 40, 16)
    whole = shares(q, keys, [listed([[0, 1, 2, 3]], 8, 10)], 10, 8)
    split = shares(q, keys, [listed([[0, 2]], 8, 10), listed([[1, 3], [1, 3]], 4, 10)], 10, 8)
    assert whole == pytest.approx(split, abs=1e-6)
    keys[:, :, 35:40] = 100.0
    sizes = torch.tensor([10, 10, 10, 5])
    hidden = shares(q, keys, [listed([[0, 1, 2, 3]], 8, 10, sizes=sizes)], 10, 8)
    keys[:, :, 35:40] = -3.0
    assert hidden == shares(q, keys, [listed([[0, 1, 2, 3]], 8, 10, sizes=sizes)], 10, 8)


@pytest.mark.parametrize(("fusion", "memory"), [("union", "memory"), ("union", "dense"), ("union", "decay"),
                                                ("union", "off"), ("gated", "memory")])  # fmt: skip
def test_a_session_is_watched_without_being_changed(fusion, memory):
    model, walk = build(fusion=fusion, window=4), make_walk(22)
    cfg, found = model.config, []
    for watching in (False, True):
        session = model.start(1, memory=memory)
        walk.observe(session, 0, 20)
        model.streamer.watcher = watcher = Dispersion(cfg.block_tokens, cfg.chunk * cfg.tokens) if watching else None
        model.step([session], *walk.chunk(20), decode=False)
        model.streamer.watcher = None
        found.append(session.pending.latents)
    assert torch.equal(*found)
    mean = watcher.mean()
    assert set(mean) == {"token_negligible", "token_critical", "block_negligible", "block_critical"}
    assert all(0.0 <= share <= 1.0 for share in mean.values())
    assert mean["token_negligible"] > mean["block_negligible"]
    branches = 2 if fusion == "gated" else 1
    assert len(watcher._shares) == branches * cfg.depth
