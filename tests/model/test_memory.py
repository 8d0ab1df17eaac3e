import gc

import numpy as np
import pytest
import torch
from decmem_env.kernels.block_selection import native
from decmem_env.kernels.block_sparse_attention import native as attention
from decmem_env.model import WorldModel, passes
from decmem_env.model.config import debug, tiny
from decmem_env.model.memory import MemoryBank, PagePool, page_bytes

from .conftest import build, make_walk
from .test_sessions import begin, play


def small(frames: int, **changes):
    """A model whose memory holds so many frames."""
    probe = build(**changes)
    return build(memory_budget=frames * probe.pool.page_bytes + 5, **changes)


def test_a_page_of_tiny_has_the_size_it_is_said_to_have():
    assert page_bytes(tiny(), torch.float32) == 8 * 5 * 64 * (2 * 60 * 4 + 6 * 4)
    pool = PagePool(debug(), torch.device("cpu"), torch.float32, 1 << 20)
    held = sum(t[0].numel() * t[0].element_size() for t in pool.keys(0)) + pool.pooled(0, slice(None)).numel() * 4
    assert held * 2 == pool.limit * pool.page_bytes


def test_copies_of_mean_keys_follow_them(monkeypatch):
    walk, runs = make_walk(80), []
    model = WorldModel.from_pretrained("debug", memory_budget=64 << 20)
    pool = model.pool
    assert pool.allocated <= pool.limit * pool.page_bytes
    if native.load() is not None:
        assert pool.allocated == pool.limit * pool.page_bytes
    session = begin(model, walk, 1, context=70)
    state = session.snapshot()
    runs.append(play(model, session, walk, 70, 80))
    for _ in range(2):
        for layer in range(model.config.depth if pool._codes else 0):
            slots = slice(int(session.bank.slots[0]), int(session.bank.slots[-1]) + 1)
            codes, facts = pool.codes(layer, slots)
            held = (codes.float() - 128) * facts[..., :1]
            assert ((pool.pooled(layer, slots)[0] - held).abs() <= facts[..., :1] * 0.501).all()
        state.spill()
        session = model.restore(state)
        runs.append(play(model, session, walk, 70, 80))
    monkeypatch.setattr(PagePool, "codes", lambda *_: None)
    runs.append(play(model, model.restore(state), walk, 70, 80))
    assert all(np.array_equal(run, runs[0]) for run in runs)


def test_the_budget_holds_and_forgetting_is_told():
    model, walk = small(30, window=4), make_walk(60)
    session = begin(model, walk, 1, context=20)
    play(model, session, walk, 20, 60)
    stats = session.stats
    assert model.pool.used <= 30
    assert stats["evicted_frames"] > 20
    assert stats["memory_frames"] + stats["evicted_frames"] == 60
    assert stats["memory_bytes"] <= model.pool.budget
    # The oldest went first.
    assert session.memory_frames.tolist() == list(range(59 - len(session.memory_frames), 59))


def test_what_changes_come_to_follows_the_table():
    """Of one cell the last change counts, and with a forgotten frame its change is forgotten."""
    model = small(24)
    bank, nothing = MemoryBank(model.pool), np.full((1, 4), np.nan)
    wall, hole, other = (
        np.array([[3.0, 4.0, 5.0, 1.0]]),
        np.array([[3.0, 4.0, 5.0, -2.0]]),
        np.array([[0.0, 1, 2, 1]]),
    )
    for index, change in enumerate((wall, nothing, other, hole, nothing)):
        slots = model.pool.allocate(1, bank.last)
        never = np.zeros(1, np.bool_)
        bank.append(slots, np.array([index]), np.zeros((1, 5)), ~np.isnan(change[:, 0]), never, change)
    assert bank.latest.tolist() == [*hole.tolist(), *other.tolist()] == bank.fork().latest.tolist()
    bank.forget(int(bank.slots[3]))
    assert bank.latest.tolist() == [*wall.tolist(), *other.tolist()]
    bank.forget(int(bank.slots[1]))
    bank.forget(int(bank.slots[0]))
    assert bank.latest.tolist() == other.tolist() and bank.evicted == 3
    bank.close()
    assert not len(bank.latest)


def test_a_prefill_longer_than_the_budget_keeps_the_newest():
    model, walk = small(20, window=4), make_walk(60)
    session = begin(model, walk, 1, context=60)
    assert session.stats["evicted_frames"] > 30
    assert session.memory_frames[-1] == 58
    assert play(model, session, make_walk(61), 60, 61).shape == (1, 96, 160, 3)


def test_windows_of_all_sessions_survive_and_then_memory_is_full():
    model, walk = small(24, window=4), make_walk(30)
    sessions = [begin(model, walk, i, context=12) for i in range(3)]
    for session in sessions:
        assert session.memory_frames[-5:].tolist() == [6, 7, 8, 9, 10]
    play(model, sessions[0], walk, 12, 15)
    with pytest.raises(MemoryError, match="close some, or give .* a larger memory_budget"):
        held = [begin(model, walk, i, context=12) for i in range(3)]
        del held
    sessions[1].close()
    gc.collect()
    play(model, begin(model, walk, 9, context=12), walk, 12, 14)


def test_snapshots_step_aside_when_memory_is_short():
    model, walk = small(40, window=4), make_walk(60)
    session = begin(model, walk, 1, context=30)
    state = session.snapshot()
    wanted = play(model, session, walk, 30, 32)
    session.close()
    other = begin(model, make_walk(60, 3), 2, context=36)
    assert other.stats["evicted_frames"] == 0
    other.close()
    restored = model.restore(state)
    assert restored.stats["memory_frames"] == 30
    assert np.array_equal(play(model, restored, walk, 30, 32), wanted)


def test_pages_are_shared_and_given_back():
    model, walk = build(), make_walk(40)
    session = begin(model, walk, 1, context=20)
    before = model.pool.used
    children = session.fork(4)
    state = session.snapshot()
    assert model.pool.used == before
    play(model, children[0], walk, 20, 23)
    assert model.pool.used == before + 3 + 1  # three pages and the scratch page
    for holder in (session, *children):
        holder.close()
        holder.close()
    assert model.pool.used == before + 1
    del state
    assert model.pool.used == 1
    lost = begin(model, walk, 1, context=20)
    del lost
    gc.collect()
    assert model.pool.used == 1


def test_tables_with_gaps_give_the_same_frames():
    """A session whose pages lie scattered among those of another equals one with pages in a row."""
    walk = make_walk(40)
    model = small(80)
    wanted = play(model, begin(model, walk, 1, context=4), walk, 4, 20)
    scattered, other = begin(model, walk, 1, context=4), begin(model, make_walk(40, 5), 2, context=4)
    blocker = MemoryBank(model.pool)
    frames = []
    for t in range(4, 20):
        frames.append(model.step([scattered], *walk.chunk(t))[0])
        slots = model.pool.allocate(1, scattered.bank.last)
        blocker.append(slots, np.zeros(1, np.int64), np.zeros((1, 5)), *np.zeros((2, 1), np.bool_))
        play(model, other, walk, t, t + 1)
    assert (np.diff(scattered.bank.slots) != 1).any()
    assert np.array_equal(np.concatenate(frames), wanted)


def test_a_full_memory_is_read_where_it_lies(monkeypatch):
    """The oldest pages make room for new ones, so that a history begins in the middle of the pool."""
    walk, frames, parts = make_walk(70), {2: [], 0: []}, {2: set(), 0: set()}
    for most in frames:
        monkeypatch.setattr(passes, "_MOST_RUNS", most)
        model = small(24)
        session = begin(model, walk, 1, context=4)
        for t in range(4, 70):
            frames[most].append(play(model, session, walk, t, t + 1))
            runs = passes._history(model.pool, [passes.Row(session.bank.slots, 0)], 1, False)[1]
            parts[most].add(1 if runs is None else len(runs))
            assert runs is None or sum(length for _, length in runs) == len(session.bank)
        assert session.bank.evicted > 30
    assert np.array_equal(frames[0], frames[2])
    assert parts == {0: {1}, 2: {1, 2}}


@pytest.mark.skipif(attention.load() is None, reason="no compiler")
def test_keys_and_values_side_by_side_are_the_same_memory(monkeypatch):
    walk = make_walk(40)
    together = WorldModel.from_pretrained("debug", memory_budget=64 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "takes", lambda dim: False)  # the memory is built so; it is read by the same code
        apart = WorldModel.from_pretrained("debug", memory_budget=64 << 20)
    for model, distance in ((together, 2 * together.config.head_dim), (apart, None)):
        keys, values = model.pool.keys(0)
        assert keys.is_contiguous() == (distance is None)
        assert distance is None or values.data_ptr() - keys.data_ptr() == distance
    sessions = [begin(model, walk, 1, context=20) for model in (together, apart)]
    frames = [play(m, s, walk, 20, 40) for m, s in zip((together, apart), sessions, strict=True)]
    assert np.array_equal(*frames)
    pages = [m.pool.copy_out(s.bank.slots) for m, s in zip((together, apart), sessions, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(pages[0][:3], pages[1][:3], strict=True))
    # A snapshot of one goes on in the other.
    again = apart.restore(sessions[0].snapshot())
    assert np.array_equal(play(apart, again, walk, 20, 24), play(together, sessions[0], walk, 20, 24))


@pytest.mark.parametrize("memory_dtype", [None, "float16"])
def test_nothing_moves_as_memory_fills(memory_dtype):
    pool = PagePool(debug(), torch.device("cpu"), torch.float32, 4 << 20, memory_dtype)
    held = [t.data_ptr() for layer in range(2) for t in pool.pages(layer)]
    slots = pool.allocate(pool.limit)
    assert sorted(slots) == list(range(pool.limit)) and pool.used == pool.capacity
    for layer in range(2):
        keys = torch.randn(pool.limit, 2, 60, 32)
        pool.write(layer, torch.from_numpy(slots), keys, keys + 1, torch.randn(pool.limit, 2, 6, 32))
    assert [t.data_ptr() for layer in range(2) for t in pool.pages(layer)] == held
    assert torch.equal(pool.copy_out(slots[:3]).values[1], (keys[:3].transpose(0, 1) + 1).to(pool.storage))
