"""Memory on the host and in 8 bits. On the CPU the host's pages are just other tensors, so the path is the same."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from decmem_env.model import Snapshot, SnapshotError, WorldModel, memory_layout
from decmem_env.model.config import debug, tiny, wan_1_3b
from decmem_env.model.memory_layout import divide, frame_bytes

from decmem_env import wan_benchmark as bench

from .conftest import make_walk, random_checkpoint
from .test_sessions import begin, play

CPU = torch.device("cpu")


def make(budget=64 << 20, memory_dtype=None, host=0, **changes) -> WorldModel:
    return WorldModel(random_checkpoint(**changes), CPU, torch.float32, budget, memory_dtype, host)


def budget_of(cfg, frames, host, memory_dtype=None, dtype=torch.float32) -> int:
    """The least budget with so many frames on the device."""
    budgets = range(1 << 18, 64 << 20, 1 << 15)
    return next(b for b in budgets if divide(cfg, dtype, memory_dtype, b, host, True).pages >= frames)


def small(host=256 << 20, frames=30, memory_dtype=None, **changes) -> WorldModel:
    """A model with so many frames on the device, and room on the host."""
    budget = budget_of(random_checkpoint(**changes).config, frames, host, memory_dtype)
    return make(budget, memory_dtype, host, **changes)


@pytest.mark.parametrize("memory_dtype", [None, "float16"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_frames_are_the_same_bit_for_bit(fusion, shared, memory_dtype, monkeypatch):
    walk = make_walk(80)
    if shared:  # layers share two stages, which are too small for a prefill
        monkeypatch.setattr(memory_layout, "_SHARES_ASKED", (0.5, 0.01))
    runs = []
    changes = {"memory_dtype": memory_dtype, "fusion": fusion, "depth": 3, "window": 4}
    for model in (make(**changes), small(**changes)):
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


def test_when_the_host_is_full_too_the_oldest_is_forgotten():
    walk = make_walk(90)
    model = small(host=30 * frame_bytes(debug(), torch.float32).page, window=4)
    assert model.pool.layout.host_pages == 30
    session = begin(model, walk, 1, context=50)
    play(model, session, walk, 50, 90)
    stats = session.stats
    assert stats["evicted_frames"] > 20 and stats["memory_frames"] + stats["evicted_frames"] == 90
    assert 20 < stats["host_frames"] <= 30 and stats["host_bytes"] == stats["host_frames"] * model.pool.host_page_bytes
    assert session.memory_frames.tolist() == list(range(89 - len(session.memory_frames), 89))
    assert np.isfinite(play(model, session, walk, 89, 90)).all()


def test_reused_slots_are_read_anew():
    """Another world takes the slots of a closed one, whose blocks the stages still held."""
    walks = [make_walk(80, seed) for seed in range(2)]
    model = small(window=4)
    first = begin(model, walks[0], 1, context=60)
    play(model, first, walks[0], 60, 62)
    first.close()
    again = begin(model, walks[1], 2, context=60)
    found = play(model, again, walks[1], 60, 70)
    fresh = small(window=4)
    assert np.array_equal(found, play(fresh, begin(fresh, walks[1], 2, context=60), walks[1], 60, 70))


@pytest.mark.parametrize("memory", ["dense", "decay", "window", "off"])
def test_every_kind_of_memory_reads_the_host(memory):
    walk, runs = make_walk(60), []
    for model in (make(window=4), small(window=4)):
        session = begin(model, walk, 1, context=50, memory=memory)
        runs.append(play(model, session, walk, 50, 56))
    assert session.stats["host_frames"] > 15
    assert np.array_equal(*runs)


def test_a_host_budget_is_counted_on_the_device():
    cfg, budget = tiny(), 2 << 30
    layout = divide(cfg, torch.float16, None, budget, 1 << 40, True)
    page, kept = frame_bytes(cfg, torch.float16)
    assert layout.pages + layout.host_pages >= 100_000 // 6  # the bar: 100,000 blocks in 2 GiB
    block = 2 * cfg.heads * cfg.block_tokens * cfg.head_dim * 2
    stages = layout.stages * layout.stage_blocks * block
    assert layout.stages == cfg.depth
    frames = layout.pages + layout.host_pages
    assert layout.pages * page + frames * (kept + kept // cfg.depth) + stages <= budget * 31 / 32
    wan = divide(wan_1_3b(), torch.bfloat16, None, 16 << 30, 1 << 40, True)
    assert wan.stages == 2 and wan.stage_blocks >= 4 * wan_1_3b().top_k
    assert divide(cfg, torch.float16, None, budget, 0, False).reserved == 0


def test_a_top_k_that_no_stage_holds_is_refused():
    model, walk = small(window=4), make_walk(60)
    most = model.pool.layout.stage_blocks
    session = begin(model, walk, 1, context=50)
    usual, session.settings = session.settings, dataclasses.replace(session.settings, top_k=most + 100)
    with pytest.raises(ValueError, match="top_k"):
        play(model, session, walk, 50, 51)
    session.settings = usual
    play(model, session, walk, 50, 51)


def test_eight_bits_change_little():
    """The same worlds in full and in 8 bits: the error is that of rounding, and half the bytes are enough."""
    walk, runs, pools = make_walk(60), [], []
    for memory_dtype in (None, "int8"):
        model = make(memory_dtype=memory_dtype)
        session = begin(model, walk, 1, context=40)
        runs.append(play(model, session, walk, 40, 60).astype(float))
        pools.append(model.pool)
    psnr = 10 * np.log10(255**2 / ((runs[0] - runs[1]) ** 2).mean())
    assert 35 < psnr < 90
    assert pools[1].page_bytes < 0.36 * pools[0].page_bytes and pools[1].limit > 2 * pools[0].limit
    assert session.stats["memory_bytes"] == 59 * pools[1].page_bytes


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_stages_with_a_place_for_every_block(fusion, monkeypatch):
    """They need no order of use; the frames are those of stages that keep one."""
    monkeypatch.setattr(memory_layout, "_SHARES", (1 / 8, 1 / 2))
    walk, runs = make_walk(40), []
    for whole in (True, False):
        model = make(3 << 20, memory_dtype="int8", window=2, fusion=fusion, top_k=48, depth=12)
        staging = model.pool.staging
        assert staging._whole and staging.places == model.pool.limit * model.config.blocks_per_frame
        staging._whole = whole
        runs.append(play(model, begin(model, walk, 1, context=30), walk, 30, 36))
    assert np.array_equal(*runs)


@pytest.mark.parametrize("host", [0, 256 << 20])
def test_eight_bits_replay_and_travel_in_snapshots(host, tmp_path):
    walk = make_walk(60)
    model = small(host, memory_dtype="int8", window=4) if host else make(memory_dtype="int8", window=4)
    session = begin(model, walk, 1, context=50)
    assert (session.stats["host_frames"] > 0) == bool(host)
    state = session.snapshot()
    wanted = play(model, session, walk, 50, 56)
    assert np.array_equal(play(model, model.restore(state), walk, 50, 56), wanted)
    state.save(tmp_path / "s.safetensors")
    loaded = Snapshot.load(tmp_path / "s.safetensors")
    other = make(memory_dtype="int8", window=4)
    assert np.array_equal(play(other, other.restore(loaded), walk, 50, 56), wanted)
    with pytest.raises(SnapshotError, match="memory_dtype"):
        make(window=4).restore(loaded)


def test_a_snapshot_longer_than_the_device_goes_to_the_host():
    walk = make_walk(80)
    big = make(window=4)
    session = begin(big, walk, 1, context=70)
    state = session.snapshot()
    wanted = play(big, session, walk, 70, 74)
    state.spill()
    model = small(window=4)
    restored = model.restore(state)
    assert restored.stats["host_frames"] > 30 and restored.stats["evicted_frames"] == 0
    assert np.array_equal(play(model, restored, walk, 70, 74), wanted)


@pytest.mark.parametrize("memory_dtype", [None, "int8"])
def test_padded_frames_of_the_large_layout(memory_dtype):
    """Blocks of 5 and of 3 tokens, guidance, chunks of 4: the host changes nothing."""
    latents, chunks = 40, []
    for host in (0, 256 << 20):
        loaded = bench.random_checkpoint("wan-debug", "cpu", depth=3)
        budget = budget_of(loaded.config, 26 if host else 80, host, memory_dtype)
        model = WorldModel(loaded, CPU, torch.float32, budget, memory_dtype, host)
        torch.manual_seed(5)
        session = bench.filled_session(model, latents)
        bench.step(session)
        bench.step(session)
        chunks.append(session.pending.latents)
    assert session.stats["host_frames"] > 10
    assert torch.equal(*chunks)


def test_copies_ahead_of_the_lists_change_nothing(monkeypatch):
    monkeypatch.setattr(memory_layout, "_SHARES_ASKED", (0.5, 0.05))
    walk, runs = make_walk(70), []
    for ahead in (True, False):
        model = small(window=4, depth=3)
        assert model.pool.layout.stages == 2
        model.pool.staging.ahead = ahead
        runs.append(play(model, begin(model, walk, 1, context=60), walk, 60, 68))
    assert np.array_equal(*runs)


def test_a_budget_is_too_small_only_for_a_window():
    with pytest.raises(ValueError, match="give at least"):
        make(1 << 20, host=1 << 30)
    with pytest.raises(ValueError, match="expected None or one of 'float32', 'float16', 'int8'"):
        make(memory_dtype="int4")


def test_16_bits_are_the_default_on_the_cpu():
    walk, runs = make_walk(60), {}
    for memory_dtype in (None, "float32"):
        model = WorldModel.from_pretrained(
            "debug", dtype=torch.float32, memory_budget=64 << 20, memory_dtype=memory_dtype
        )
        session = begin(model, walk, 1, context=50)
        runs[memory_dtype] = model, session, play(model, session, walk, 50, 60)
    (half, session, frames), (full, _, exact) = runs.values()
    assert [m.pool.storage for m in (half, full)] == [torch.float16, torch.float32]
    assert half.pool.host_page_bytes * 2 == full.pool.host_page_bytes and half.pool.capacity > 1.5 * full.pool.capacity
    assert abs(frames.astype(int) - exact.astype(int)).max() <= 4
    assert half.kernel == full.kernel + "/float16"
    state = session.snapshot()
    with pytest.raises(SnapshotError, match="memory_dtype"):
        full.restore(state)
    state.spill()
    ahead = play(half, session, walk, 50, 55)
    assert np.array_equal(play(half, half.restore(state), walk, 50, 55), ahead)
    with pytest.raises(ValueError, match="expected None or one of 'float64', 'int8'"):
        WorldModel(random_checkpoint(), CPU, torch.float64, 64 << 20, "float16")


def test_a_fork_costs_no_pages():
    model, walk = make(), make_walk(40)
    session = begin(model, walk, 1, context=30)
    before = model.pool.used
    children = session.fork(64)
    assert model.pool.used == before and all(len(child.bank) == 29 for child in children)
