"""The sampler's steps: several for frames that show something new, one for all others, in one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decmem_env.model import Snapshot, WorldModel, pass_graphs
from decmem_env.model.attention import BlockLists
from decmem_env.model.config import preset
from decmem_env.model.pass_graphs import PassGraphs

from .conftest import build, make_walk, random_checkpoint
from .test_pass_graphs import Again

SEEN = 6
KEYFRAMES = {"keyframe_blocks": 1.0, "keyframe_degrees": 8.0}
NEW, KNOWN = (30.0, 0.0), (0.5, 3.0)  # blocks and degrees beside the last seen view


def begin(model, seed=1, **settings):
    session = model.start(seed=seed, **settings)
    make_walk(SEEN).observe(session, 0, SEEN)
    return session


def poses_of(*offsets):
    """Poses [n, 1, 5] beside the last of the seen ones."""
    pose = make_walk(SEEN).poses[-1]
    return np.stack([pose + np.array([x, 0.0, 0.0, 0.0, yaw]) for x, yaw in offsets])[:, None]


def step(model, sessions, offsets):
    """Latents [n, c, C, h, w] of one step, at one offset each."""
    chunk = model.config.chunk
    actions = np.zeros((len(sessions), chunk, 25), np.float32)
    model.step(sessions, actions, poses_of(*offsets).repeat(chunk, 1), decode=False)
    return torch.stack([session.pending.latents for session in sessions])


def made(model, offset, **settings):
    """Latents of the first generated chunk."""
    session = begin(model, **settings)
    latents = step(model, [session], [offset])
    session.close()
    return latents


@pytest.fixture(scope="module")
def frugal():
    return build(**KEYFRAMES, new_view_steps=3)


def test_new_views_get_several_steps_and_known_ones_one(frugal):
    assert torch.equal(made(frugal, NEW), made(frugal, NEW, steps=3))
    assert torch.equal(made(frugal, KNOWN), made(frugal, KNOWN, steps=1))
    for offset in (NEW, KNOWN):
        assert not torch.allclose(made(frugal, offset, steps=3), made(frugal, offset, steps=1), atol=1e-2)


def test_the_first_frame_of_an_empty_world_is_new(frugal):
    fresh = {steps: step(frugal, [frugal.start(1, steps=steps)], [NEW]) for steps in (None, 1, 3)}
    assert torch.equal(fresh[None], fresh[3]) and not torch.equal(fresh[None], fresh[1])


def test_a_view_stops_being_new_once_it_is_about_to_be_kept(frugal):
    """The generated view is still pending when the frame beside it is made."""
    session = begin(frugal)
    step(frugal, [session], [NEW])
    one, three = (frugal.restore(session.snapshot()) for _ in range(2))
    for again, steps in ((one, 1), (three, 3)):
        again.settings = frugal.start(steps=steps).settings
    found, wanted, other = (step(frugal, [world], [(30.5, 0.0)]) for world in (session, one, three))
    assert torch.equal(found, wanted) and not torch.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize(("memory", "new"), [("off", True), ("window", True), ("every", False), ("dense", False)])
def test_what_a_session_cannot_see_is_new_to_it(memory, new):
    """The first of the seen views lies before the window of two frames."""
    model = build(**KEYFRAMES, new_view_steps=3, window=2)
    pose = make_walk(SEEN).poses[:1][None]
    frames = []
    for steps in (None, 3, 1):
        session = begin(model, memory=memory, steps=steps)
        model.step([session], np.zeros((1, 1, 25), np.float32), pose, decode=False)
        frames.append(session.pending.latents)
        session.close()
    assert torch.equal(frames[0], frames[1 if new else 2]) and not torch.equal(frames[1], frames[2])


def test_a_view_that_memory_did_without_makes_nothing_known(frugal):
    """Memory keeps no frame beside a known one, so what lies beside that frame only is new."""
    session = begin(frugal)
    step(frugal, [session], [(0.9, 0.0)])
    plain = frugal.restore(session.snapshot())
    plain.settings = frugal.start(steps=3).settings
    assert torch.equal(step(frugal, [session], [(1.8, 0.0)]), step(frugal, [plain], [(1.8, 0.0)]))
    assert session.stats["covered_frames"] == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_that_are_asked_for_rule_everywhere(frugal, steps):
    plain = build(steps=steps, **KEYFRAMES)
    for offset in (NEW, KNOWN):
        assert torch.equal(made(frugal, offset, steps=steps), made(plain, offset))


def test_more_default_steps_are_not_cut():
    model = build(steps=4, new_view_steps=2, **KEYFRAMES)
    assert torch.equal(made(model, NEW), made(model, NEW, steps=4))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance": 2.0},
        {"sampler": "renoise"},
        {"fusion": "union"},
        {"steps": 2, "shift": 3.0},
        {"chunk": 2},
        {"voxel_planes": 4},
    ],
)
def test_rows_of_both_kinds_are_as_alone(changes):
    model = build(**{"new_view_steps": 3, **KEYFRAMES, **changes})
    walks = ([NEW, (30.5, 0.0), (40.0, 0.0)], [KNOWN, (31.0, 0.0), KNOWN], [KNOWN] * 3, [NEW, (50.0, 0.0), KNOWN])
    alone = []
    for seed, walk in enumerate(walks):
        session = begin(model, seed)
        alone.append(torch.cat([step(model, [session], [offset]) for offset in walk]))
        session.close()
    sessions = [begin(model, seed) for seed in range(len(walks))]
    together = torch.stack([step(model, sessions, offsets) for offsets in zip(*walks, strict=True)], 1)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-3, atol=1e-3)
    few = begin(model, 0, steps=model.config.steps)
    assert not torch.allclose(step(model, [few], [NEW])[0], together[0, 0], atol=1e-2), "the steps differ"


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_recorded_lists_are_those_of_the_last_step_of_each_row(frugal, guidance):
    sessions = [begin(frugal, seed, guidance=guidance) for seed in range(3)]
    alone = [begin(frugal, seed, guidance=guidance, steps=steps) for seed, steps in ((0, 1), (2, 3), (2, 1))]
    for session in (sessions[0], sessions[2], *alone):
        session.record_lists = True
    step(frugal, sessions, [KNOWN, NEW, NEW])
    for session, offset in zip(alone, (KNOWN, NEW, NEW), strict=True):
        step(frugal, [session], [offset])
    assert sessions[1].last_lists is None  # nobody asked
    cfg = frugal.config
    for session in (sessions[0], sessions[2]):
        assert len(session.last_lists) == cfg.depth
        for layer in session.last_lists:
            assert layer.lists.shape == (cfg.heads, cfg.blocks_per_frame, cfg.top_k)
            assert layer.counts.shape == (cfg.heads, cfg.blocks_per_frame)

    def same(one, other):
        pairs = zip(one.last_lists, other.last_lists, strict=True)
        return all(torch.equal(a.lists, b.lists) and torch.equal(a.counts, b.counts) for a, b in pairs)

    assert same(sessions[0], alone[0]) and same(sessions[2], alone[1]) and not same(sessions[2], alone[2])


def test_given_lists_reach_the_rows_of_both_kinds(frugal):
    """Each row of a batch is given another block for both its frames, the committed one and the new one."""
    cfg = frugal.config
    rows = (1, cfg.heads, 2 * cfg.blocks_per_frame)

    def steer(sessions):
        for session in sessions:
            block = torch.full((*rows, 1), session.seed, dtype=torch.int32)
            session.force_lists = [BlockLists(block, torch.ones(rows, dtype=torch.int32))] * cfg.depth
        return sessions

    offsets = [NEW, KNOWN, NEW]
    alone, together = (steer([begin(frugal, seed) for seed in range(3)]) for _ in range(2))
    wanted = torch.cat([step(frugal, [s], [o]) for s, o in zip(alone, offsets, strict=True)])
    torch.testing.assert_close(step(frugal, together, offsets), wanted, rtol=1e-3, atol=1e-3)
    free = torch.cat([made(frugal, offset, seed=seed) for seed, offset in enumerate(offsets)])
    assert ((free - wanted).abs().flatten(1).amax(1) > 1e-2).all(), "the lists matter"


def replayed(model, recorder, monkeypatch, tolerance):
    """Six steps of rows of both kinds, launched and replayed."""
    monkeypatch.setattr(pass_graphs, "BUCKET", 20)

    def run():
        sessions = [begin(model, seed) for seed in range(3)]
        walks = [[(30.0 * t, 0.0), (0.2 * t, 0.0), (0.7 * t, 0.0)] for t in range(6)]
        return torch.stack([step(model, sessions, offsets) for offsets in walks])

    wanted = run()
    model.graphs = PassGraphs(model.streamer, recorder)
    torch.testing.assert_close(run(), wanted, rtol=tolerance, atol=tolerance)


def test_replayed_passes_are_the_same_for_rows_of_both_kinds(monkeypatch):
    recorder = Again()
    replayed(build(**KEYFRAMES, new_view_steps=3), recorder, monkeypatch, 1e-4)
    assert recorder.runs


@pytest.mark.gpu
@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_cuda_graphs_for_rows_of_both_kinds(fusion, monkeypatch):
    changes = {**KEYFRAMES, "new_view_steps": 3, "fusion": fusion, "voxel_planes": 4, "marks_generated": True}
    loaded = random_checkpoint(**changes)
    for part in (loaded.transformer, loaded.autoencoder):
        part.to("cuda")
    model = WorldModel(loaded, torch.device("cuda"), torch.float32, 64 << 20)
    replayed(model, None, monkeypatch, 2e-2)
    assert any(graph is not None for graph in model.graphs._graphs.values())


def test_a_failing_later_step_leaves_the_session_as_it_was(frugal, monkeypatch):
    session, twin = begin(frugal), begin(frugal)
    used, run = frugal.pool.used, frugal.streamer.run
    with monkeypatch.context() as patch:
        calls = []

        def fail(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return run(*arguments)

        patch.setattr(frugal.streamer, "run", fail)
        with pytest.raises(RuntimeError):
            step(frugal, [session], [NEW])
    assert frugal.pool.used <= used + 1  # the scratch page
    assert torch.equal(step(frugal, [session], [NEW]), step(frugal, [twin], [NEW]))


@pytest.mark.parametrize("changes", [{"new_view_steps": 3}, {"new_view_steps": 0}, {"new_view_steps": 0, **KEYFRAMES}])
def test_steps_of_new_views_need_distances_and_are_at_least_one(changes):
    with pytest.raises(ValueError, match=f"new_view_steps is {changes['new_view_steps']}"):
        preset("debug").with_overrides(**changes)


def test_snapshots_and_forks_keep_the_steps_of_new_views(frugal, tmp_path):
    session = begin(frugal)
    step(frugal, [session], [KNOWN])
    session.snapshot().save(tmp_path / "s")
    wanted = begin(frugal)
    step(frugal, [wanted], [KNOWN])
    latents = step(frugal, [wanted], [NEW])
    (fork,) = session.fork(1)
    for again in (frugal.restore(Snapshot.load(tmp_path / "s")), fork):
        assert again.settings == session.settings and again.stats["new_view_steps"] == 3
        assert torch.equal(step(frugal, [again], [NEW]), latents)
    explicit = frugal.start(steps=2)
    assert frugal.restore(explicit.snapshot()).settings == explicit.settings
    assert (explicit.stats["steps"], explicit.stats["new_view_steps"]) == (2, 2)
