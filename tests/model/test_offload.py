"""Memory on the host and in 8 bits. On the CPU the host's pages are just other tensors, so the path is the same."""

import gc

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel, memory_layout
from decmem_env.model.memory_layout import divide, frame_bytes

from .conftest import make_walk, random_checkpoint
from .test_sessions import begin, play

CPU = torch.device("cpu")


def make(budget=64 << 20, memory_dtype=None, host=0, **changes) -> WorldModel:
    return WorldModel(random_checkpoint(**changes), CPU, torch.float32, budget, memory_dtype, host)


def small(host=256 << 20, frames=30, memory_dtype=None, **changes) -> WorldModel:
    """A model with so many frames on the device, and room on the host."""
    cfg = random_checkpoint(**changes).config
    page, kept = frame_bytes(cfg, torch.float32, memory_dtype)
    for budget in range(1 << 20, 64 << 20, 1 << 16):
        layout = divide(cfg, torch.float32, memory_dtype, budget, host, True)
        if layout.pages >= frames:
            break
    return make(budget, memory_dtype, host, **changes)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_frames_are_the_same_bit_for_bit(fusion, shared, monkeypatch):
    walk = make_walk(80)
    if shared:  # layers share two stages, which are too small for a prefill
        monkeypatch.setattr(memory_layout, "_SHARES_ASKED", (0.5, 0.01))
    runs = []
    for model in (make(fusion=fusion, depth=3, window=4), small(fusion=fusion, depth=3, window=4)):
        session = begin(model, walk, 1, context=50)
        runs.append(play(model, session, walk, 50, 80))
    assert (model.pool.layout.stages == 2) == shared
    stats = session.stats
    assert stats["host_frames"] > 40 and stats["evicted_frames"] == 0 and stats["memory_frames"] == 80
    assert stats["memory_bytes"] <= model.pool.budget and stats["fetched_bytes"] > 0
    assert np.array_equal(*runs)


def test_batches_forks_and_snapshots_live_on_both_sides():
    walks = [make_walk(80, seed) for seed in range(2)]
    results = []
    for model in (make(window=4), small(window=4)):
        sessions = [begin(model, w, i, context=40 - 9 * i) for i, w in enumerate(walks)]
        sessions += sessions[0].fork(2)
        state = sessions[1].snapshot()
        chunks = [(walks[0], 40), (walks[1], 31), (walks[1], 50), (walks[0], 44)]
        frames = []
        for t in range(6):
            rows = [w.chunk(start + t) for w, start in chunks]
            frames.append(model.step(sessions, *(np.concatenate(p) for p in zip(*rows, strict=True))))
        again = play(model, model.restore(state), walks[1], 31, 35)
        results.append((np.concatenate(frames, 1).astype(int), again.astype(int)))
    assert model.pool.places.of.min() < 0
    for one, other in zip(*results, strict=True):
        assert abs(one - other).max() <= 1
    for session in sessions:
        session.close()
    del state
    gc.collect()
    assert model.pool.used == len(model.pool._scratch)
    assert model.pool.places.free == model.pool.capacity - model.pool.used
    assert len(model.pool.host._free) == model.pool.host.count
