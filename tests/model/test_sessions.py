import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from decmem_env.model import Snapshot, SnapshotError, WorldModel

from .conftest import build, make_walk


def play(model, session, walk, start, stop):
    return np.concatenate([model.step([session], *walk.chunk(t))[0] for t in range(start, stop)])


def begin(model, walk, seed=0, context=14, **settings):
    session = model.start(seed, **settings)
    walk.observe(session, 0, context)
    return session


def test_the_seed_decides_the_noise(model, walk):
    runs = [play(model, begin(model, walk, seed), walk, 14, 18) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_sessions_do_not_touch_each_other(model, walk):
    alone = play(model, begin(model, walk, 7), walk, 14, 20)
    first, second = begin(model, walk, 7), model.start(8)
    other = make_walk(20, seed=9)
    frames = []
    for t in range(14, 20):
        frames.append(model.step([first], *walk.chunk(t))[0])
        if t == 14:
            other.observe(second, 0, 5)
        model.step([second], *other.chunk(t))
    assert np.array_equal(np.concatenate(frames), alone)


def test_rows_of_a_batch_are_independent(walk):
    model = build()
    walks = [make_walk(40, seed) for seed in range(4)]
    contexts = (3, 14, 20, 9)  # also shorter than the window
    settings = ({}, {}, {"memory": "off"}, {})

    def sessions():
        return [begin(model, w, i, c, **s) for i, (w, c, s) in enumerate(zip(walks, contexts, settings, strict=True))]

    singles = [
        np.concatenate([model.step([s], *w.chunk(c + t))[0] for t in range(6)])
        for s, w, c in zip(sessions(), walks, contexts, strict=True)
    ]
    rows = sessions()
    batched = []
    for t in range(6):
        pairs = [w.chunk(c + t) for w, c in zip(walks, contexts, strict=True)]
        batched.append(model.step(rows, *(np.concatenate(p) for p in zip(*pairs, strict=True))))
    batched = np.concatenate(batched, 1).astype(int)
    assert abs(batched[:, 0] - np.stack(singles)[:, 0]).max() <= 1
    assert (abs(batched - np.stack(singles)) <= 2).mean() >= 0.99
    assert abs(batched[0] - batched[1]).max() > 2


def test_fork_continues_once_and_branches_otherwise(model, walk):
    session = begin(model, walk, 4)
    play(model, session, walk, 14, 16)
    children = session.fork(3)
    again = session.fork(2)
    parent = play(model, session, walk, 16, 20)
    runs = [play(model, child, walk, 16, 20) for child in (*children, *again)]
    assert np.array_equal(runs[0], parent) and np.array_equal(runs[3], parent)
    distinct = {run.tobytes() for run in (runs[0], runs[1], runs[2], runs[4])}
    assert len(distinct) == 4
    session.close()
    assert play(model, children[0], walk, 20, 21).shape == (1, 96, 160, 3)


@pytest.mark.parametrize("settings", [{}, {"steps": 2, "guidance": 2.0}], ids=["plain", "guided"])
def test_a_restored_snapshot_continues_bit_for_bit(model, walk, tmp_path, settings):
    session = begin(model, walk, 4, **settings)
    play(model, session, walk, 14, 17)
    frozen = session.snapshot()
    frozen.save(tmp_path / "s.safetensors")
    wanted = play(model, session, walk, 17, 22)
    session.close()
    other = WorldModel.from_pretrained("debug", memory_budget=64 << 20, memory_dtype="float32")
    for state, engine in (
        (frozen, model),
        (frozen, model),
        (Snapshot.load(tmp_path / "s.safetensors"), model),
        (Snapshot.load(tmp_path / "s.safetensors"), other),
        (frozen, other),
    ):
        restored = engine.restore(state)
        assert np.array_equal(play(engine, restored, walk, 17, 22), wanted)
        assert restored.stats["memory_frames"] == 22
    assert list(tmp_path.iterdir()) == [tmp_path / "s.safetensors"]


def test_snapshots_refuse_what_does_not_fit(model, walk, tmp_path):
    state = begin(model, walk, 4).snapshot()
    other = build()
    with pytest.raises(SnapshotError, match="checkpoint_sha256 .* load checkpoint 'debug'"):
        other.restore(state)
    half = build()
    half.sha256, half.kernel = model.sha256, "cuda/float16/triton"
    with pytest.raises(SnapshotError, match="kernel cpu/float32/cpu.*same device"):
        half.restore(state)
    state.facts = {**state.facts, "version": 99}
    state.save(tmp_path / "new")
    with pytest.raises(SnapshotError, match="version 99"):
        Snapshot.load(tmp_path / "new")
    (tmp_path / "broken").write_bytes((tmp_path / "new").read_bytes()[:300])
    with pytest.raises(SnapshotError, match="damaged"):
        Snapshot.load(tmp_path / "broken")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Snapshot.load(tmp_path / "nowhere")


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_memory_modes(fusion, walk):
    model = build(fusion=fusion, window=3)
    frames, sessions = {}, {}
    for mode in ("memory", "dense", "off", "window"):
        sessions[mode] = begin(model, walk, 1, memory=mode)
        sessions[mode].record_lists = True
        frames[mode] = play(model, sessions[mode], walk, 14, 16)
    distinct = {run.tobytes() for run in frames.values()}
    assert len(distinct) == (4 if fusion == "gated" else 3)
    if fusion == "union":
        assert np.array_equal(frames["off"], frames["window"])
    else:
        lists = sessions["window"].last_lists[0]
        assert lists.lists.min() >= (15 - 3) * 6 and lists.lists.max() < 15 * 6
    assert all(int(layer.counts.sum()) == 0 for layer in sessions["off"].last_lists)
    assert sessions["memory"].last_lists[0].lists.shape == (2, 6, 8)
    # Only what lies in the window matters where the memory is off.
    changed = dataclasses.replace(walk, frames=walk.frames.copy())
    changed.frames[0] = 255 - changed.frames[0]
    for mode, same in (("off", True), ("memory", False), ("dense", False)):
        run = play(model, begin(model, changed, 1, memory=mode, context=14), walk, 14, 16)
        assert np.array_equal(run, frames[mode]) == same, mode


def test_translation_of_the_world_changes_nothing(model, walk):
    moved = dataclasses.replace(walk, poses=walk.poses + (512.0, 0.0, -256.0, 0.0, 0.0))
    runs = [play(model, begin(model, w, 1), w, 14, 17).astype(int) for w in (walk, moved)]
    assert abs(runs[0] - runs[1]).max() <= 1


def test_actions_and_poses_matter(model, walk):
    base = play(model, begin(model, walk, 1), walk, 14, 15)
    acted = dataclasses.replace(walk, actions=walk.actions.copy(), poses=walk.poses.copy())
    acted.actions[14, 17] = 1.0
    assert not np.array_equal(play(model, begin(model, walk, 1), acted, 14, 15), base)
    turned = dataclasses.replace(walk, poses=walk.poses.copy())
    turned.poses[14, 4] += 20.0
    assert not np.array_equal(play(model, begin(model, walk, 1), turned, 14, 15), base)


def test_stats_and_context(model, walk):
    session = begin(model, walk, 1)
    seen = []
    session.observe(walk.frames[14:20], walk.actions[14:20], walk.poses[14:20], progress=seen.append)
    assert sum(seen) == 6
    stats = session.stats
    assert stats["memory_frames"] == 20 and stats["frame_index"] == 19 and stats["checkpoint"] == "debug"
    assert stats["memory_bytes"] == 19 * model.pool.page_bytes and len(stats["checkpoint_sha256"]) == 64
    frame = model.step([session], *walk.chunk(20))
    assert session.stats["memory_frames"] == 21 and session.stats["step_ms"] > 0
    assert np.array_equal(session.decode_context(), frame[0])
    np.testing.assert_array_equal(session.pose, walk.poses[20])
    np.testing.assert_array_equal(session.memory_frames, np.arange(20))
    np.testing.assert_array_equal(session.memory_poses, walk.poses[:20])
    assert model.step([session], *walk.chunk(21), decode=False) is None


def test_bad_input_gets_one_clear_line_and_changes_nothing(model, walk):
    session = begin(model, walk, 1)
    actions, poses = walk.chunk(14)
    nan = poses.copy()
    nan[0, 0, 2] = np.nan
    wild = actions.copy()
    wild[0, 0, 11] = 3.0
    frames = walk.frames[:2]
    cases = [
        (lambda: model.step([session], actions, nan), r"poses\(0, 0, 2\) is NaN"),
        (lambda: model.step([session], wild, poses), r"action key entries must lie in \[0, 1\]"),
        (lambda: model.step([session], actions[0], poses[0]), r"actions \(1, 25\) and poses \(1, 5\): expected"),
        (lambda: model.step([session, session], actions, poses), "named twice"),
        (lambda: model.step([], actions, poses), "at least one session"),
        (lambda: build().step([session], actions, poses), "another WorldModel"),
        (lambda: session.observe(frames[:, :50], actions[0], poses[0]), r"frames are uint8 \(2, 50, 160, 3\)"),
        (lambda: session.observe(frames / 255, actions[0], poses[0]), "frames are float64"),
        (lambda: session.observe(frames, actions[0], poses[0]), "2 frames with actions"),
        (lambda: session.observe(frames[:0], actions[0], poses[0]), "frames are uint8"),
        (
            lambda: model.start(memory="all"),
            "memory is 'all': expected one of memory, every, content, dense, decay, off, window",
        ),
        (lambda: model.start(steps=0), "steps 0"),
        (lambda: model.start(guidance=float("nan")), "guidance nan"),
        (lambda: model.start().decode_context(), "no frame yet"),
        (lambda: session.fork(0), r"fork\(0\)"),
        (lambda: WorldModel.from_pretrained("debug", memory_budget=1000), "give at least"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    wanted = play(model, begin(model, walk, 1), walk, 14, 15)
    assert np.array_equal(play(model, session, walk, 14, 15), wanted)
    session.close()
    for call in (lambda: model.step([session], actions, poses), lambda: walk.observe(session, 0, 2), session.snapshot):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_failing_step_leaves_the_session_as_it_was(walk, monkeypatch):
    model = build()
    session, twin = begin(model, walk, 1), begin(model, walk, 1)
    used = model.pool.used
    with monkeypatch.context() as patch:

        def fail(*_, **__):
            raise RuntimeError("out of memory")

        patch.setattr(model.streamer, "_attend", fail)
        with pytest.raises(RuntimeError):
            model.step([session], *walk.chunk(14))
    assert model.pool.used == used + 1  # the scratch page
    assert np.array_equal(play(model, session, walk, 14, 17), play(model, twin, walk, 14, 17))


SCRIPT = """
import hashlib, sys
import numpy as np, torch
torch.set_num_threads(1)
from decmem_env.model import WorldModel
model = WorldModel.from_pretrained("debug")
rng = np.random.default_rng(0)
session = model.start(5)
poses = np.cumsum(rng.normal(size=(40, 5)) * (.4, 0, .4, 1, 12), 0)
actions = np.zeros((40, 25), np.float32)
session.observe(rng.integers(0, 256, (10, 96, 160, 3), np.uint8), actions[:10], poses[:10])
digest = hashlib.sha256()
for t in range(10, 40):
    digest.update(model.step([session], actions[None, t:t+1], poses[None, t:t+1]).tobytes())
print(digest.hexdigest())
"""


def test_two_processes_make_the_same_frames():
    runs = [subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.strip()) == 64


def test_facts_of_a_snapshot_are_json(model, walk):
    state = begin(model, walk, 4).snapshot()
    assert json.loads(json.dumps(state.facts))["settings"]["memory"] == "memory"
    assert all(isinstance(value, torch.Tensor) for value in state.arrays.values())
