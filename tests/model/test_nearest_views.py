"""What a frame sees where a seen view lies beside it: the nearest seen views, and nothing else."""

import numpy as np
import pytest
import torch
from decmem_env.model.changes import told_on_walk
from decmem_env.model.config import tiny, wan_debug
from decmem_env.model.nearest_views import Views, apart, nearest, seen_from, seen_on_walk
from decmem_env.model.voxel_rays import views as voxel_views

from decmem_env.conventions.actions import Action
from decmem_env.conventions.poses import EYE_HEIGHT, look_vector

from .conftest import build, make_walk
from .test_streaming import CONTEXT, STEPS, record_velocities, relative, teacher_forced

FEW = 3
DISTANCES = {"keyframe_blocks": 1.0, "keyframe_degrees": 10.0}
TOLD_CHANGES = {"voxel_planes": 5, "voxel_hands": True, "voxel_changes": True}


def walk_of(length, seed=0):
    """Walks about and comes back."""
    poses = np.cumsum(np.random.default_rng(seed).normal(size=(length, 5)) * (0.4, 0.0, 0.4, 2.0, 12.0), 0)
    quarter = length // 4
    poses[length - quarter :] = poses[:quarter][::-1]
    return poses


def test_apart_is_one_at_two_blocks_or_seventeen_degrees():
    here = np.array([3.0, 4.0, 5.0, 10.0, 175.0])
    for offset in (
        (2.0, 0, 0, 0, 0),
        (0, -2.0, 0, 0, 0),
        (0, 0, 0, 17.0, 0),
        (0, 0, 0, 0, 17.0),
        (0, 0, 0, 5.0, -17.0),
    ):
        assert apart(here + np.array(offset), here) == pytest.approx(1.0)
    assert apart(here + np.array([0, 0, 0, 0, 17.0 - 360.0]), here) == pytest.approx(1.0)
    assert apart(here + np.array([1.2, 0, 1.6, 17.0, 0]), here) == pytest.approx(2.0**0.5)


def test_the_very_pose_is_found_however_long_the_past_is():
    poses = walk_of(600)
    for t in (10, 250, 590):
        seen = nearest(poses, poses[t], FEW)
        distances = apart(poses, poses[t])
        assert len(seen) == FEW and distances[seen].min() == 0.0 and (np.diff(seen) > 0).all()
        for other in np.flatnonzero(distances < distances[seen].max()):  # nearer ones show the same as those
            assert other in seen or apart(poses[seen], poses[other]).min() < 0.15


def test_views_that_show_the_same_are_taken_once():
    poses = walk_of(90)
    poses[30:65] = poses[30]
    seen = nearest(poses, poses[30], FEW)
    assert 64 in seen and ((seen >= 30) & (seen < 65)).sum() == 1  # the latest of equals
    assert nearest(poses[30:65], poses[30], FEW).tolist() == [34]
    assert len(nearest(poses[:0], poses[30], FEW)) == 0


def look(model, session, pose, action=None, cell=None):
    """One step at a pose, where the hand may change a cell; the frame, and which frames it saw."""
    actions = np.zeros((1, 1, 25), np.float32)
    if action is not None:
        actions[..., action] = 1.0
    cells = None if cell is None else np.asarray(cell)[None, None]
    return model.step([session], actions, np.asarray(pose)[None, None], cells=cells), session.last_seen


def test_beside_a_seen_view_only_the_nearest_ones_count():
    """As if memory held nothing else; elsewhere, window and retrieval choose."""
    walk = make_walk(CONTEXT)
    plain, placed = (build(fusion="union", window=4, nearest_views=few, **DISTANCES) for few in (0, FEW))
    for blocks, known in ((0.5, True), (40.0, False)):
        sessions = [model.start(1) for model in (plain, placed)]
        for session in sessions:
            walk.observe(session, 0, CONTEXT)
        pose = walk.poses[5] + [blocks, 0.0, 0.0, 0.0, 0.0]
        (before, _), (frame, seen) = (look(s.model, s, pose) for s in sessions)
        if not known:
            assert seen is None
            continue
        assert len(seen) == FEW and apart(walk.poses[seen], pose).min() == apart(walk.poses, pose).min()
        bank = sessions[1].bank
        slots = plain.pool.allocate(FEW)
        plain.pool.copy_in(slots, placed.pool.copy_out(bank.slots[np.isin(bank.frame_index, seen)]))
        alone = plain.start(1, memory="off")
        alone.bank.append(slots, seen, walk.poses[seen], *np.zeros((2, FEW), bool))
        alone.origin, alone.next_frame = walk.poses[0].copy(), CONTEXT
        wanted, _ = look(plain, alone, pose)
        assert (frame != before).any() and np.abs(frame.astype(int) - wanted.astype(int)).max() <= 1


def test_a_seen_view_serves_within_eight_blocks_and_twenty_degrees():
    config = tiny().with_overrides(fusion="union", nearest_views=2, **DISTANCES)
    poses = np.zeros((6, 5))
    poses[:, 0] = [0.0, 0.5, 1.0, 30.0, 30.5, 31.0]
    views = Views(poses, *np.zeros((2, 6), bool), np.full((6, 4), np.nan))
    for offset, seen in (
        ((-7.9, 0, 0, 0, 0), [0, 1]),
        ((-8.1, 0, 0, 0, 0), None),
        ((0, 0, 0, 19.0, 0), [0, 1]),
        ((0, 0, 0, 21.0, 0), None),
        ((38.0, 0, 0, -19.0, 341.0), [4, 5]),
        ((0, 0, 0, 0, 180.0), None),
    ):
        found = seen_from(views, np.array(offset), config)
        assert (found if found is None else found.tolist()) == seen
    dreamed = views._replace(generated=np.arange(6) < 3)
    assert seen_from(dreamed, poses[0], config) is None


def test_dreamed_and_outdated_views_do_not_serve():
    model = build(fusion="union", nearest_views=FEW, **DISTANCES)
    walk, far = make_walk(CONTEXT), [40.0, 0.0, 0.0, 0.0, 0.0]
    session = model.start(1)
    walk.observe(session, 0, CONTEXT)
    assert CONTEXT - 1 in look(model, session, walk.poses[-1])[1]  # the last frame observed, which is not committed yet
    assert look(model, session, walk.poses[-1] + far)[1] is None
    assert look(model, session, walk.poses[-1] + far)[1] is None  # beside its own frame only
    assert len(look(model, session, walk.poses[-1], Action.PLACE)[1]) == FEW
    for _ in range(2):
        assert look(model, session, walk.poses[-1])[1] is None  # what was seen is out of date
    again = model.restore(session.snapshot())
    assert again.bank.generated.tolist() == session.bank.generated.tolist() and session.bank.generated.sum() == 2
    frames = [look(model, one, walk.poses[3])[0] for one in (session, again, session.fork(1)[0])]
    np.testing.assert_array_equal(frames[0], frames[1])


def listed(seen):
    """What the frames of one walk see, as `teacher_forcing` takes it."""
    lists, counts = torch.zeros(1, len(seen), 3, dtype=torch.int32), torch.full((1, len(seen)), -1, dtype=torch.int32)
    for t, chosen in enumerate(seen):
        if chosen is not None:
            lists[0, t, : len(chosen)], counts[0, t] = torch.from_numpy(chosen), len(chosen)
    return lists, counts


def cell_ahead(pose):
    """A cell two blocks before the eye."""
    return np.floor(pose[:3] + [0.0, EYE_HEIGHT, 0.0] + 2.0 * look_vector(pose))


def test_a_told_change_leaves_what_was_seen_in_use():
    """Then the seen views show the place, and a dreamed one what the change looks like."""
    model = build(fusion="union", nearest_views=FEW, **DISTANCES, **TOLD_CHANGES)
    walk = make_walk(CONTEXT)
    session = model.start(1)
    walk.observe(session, 0, CONTEXT)
    pose, cell = walk.poses[-1], cell_ahead(walk.poses[-1])
    seen = look(model, session, pose, Action.PLACE, cell)[1]
    assert len(seen) == FEW and (seen < CONTEXT).all()
    after = look(model, session, pose)[1]
    assert after.tolist() == [*seen, CONTEXT]
    for aside, shows in ((1.5, True), (3.0, False)):  # a dreamed view serves from less far than a seen one
        there = look(model, session.fork(1)[0], pose + [aside, 0.0, 0.0, 0.0, 0.0])[1]
        assert (CONTEXT in there) == shows and len(there) == FEW + shows
    told = session.pending.told[0]
    assert told[0].tolist() == [*cell, 1.0] and np.isnan(told[1:]).all()
    for again in (model.restore(session.snapshot()), session.fork(1)[0]):
        np.testing.assert_array_equal(again.pending.told[0], told)
        np.testing.assert_array_equal(look(model, again, pose)[1], after)
    far = walk.poses[-1] + [40.0, 0.0, 0.0, 0.0, 0.0]
    look(model, session, far)
    assert np.isnan(session.pending.told).all(), "too far away to be seen"
    look(model, session, pose, Action.ATTACK)  # nobody says which cell
    assert look(model, session, pose)[1] is None


def test_streaming_equals_one_pass(noises, monkeypatch):
    """Frames by place and by content, with changes told, on a walk that comes back."""
    model = build(fusion="union", nearest_views=2, window=4, **DISTANCES, **TOLD_CHANGES)
    torch.nn.init.normal_(model.transformer.voxel_rays.outline.weight, std=0.1)
    walk = make_walk(CONTEXT + STEPS)
    walk.poses[CONTEXT, 0] += 40.0
    walk.poses[CONTEXT + 1 :] = walk.poses[[CONTEXT - 1, 3, 7, CONTEXT - 1, 3]] + [0.2, 0.0, 0.1, 1.0, 2.0]
    walk.actions[CONTEXT + 1, Action.ATTACK] = 1.0
    cells = np.full((CONTEXT + STEPS, 3), np.nan)
    cells[CONTEXT + 1] = cell_ahead(walk.poses[CONTEXT + 1])
    velocities = record_velocities(monkeypatch, model)
    session = model.start(1, memory="every")
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT]))]
    walk.observe(session, 0, CONTEXT)
    by_place = []
    for t in range(CONTEXT, CONTEXT + STEPS):
        model.step([session], *walk.chunk(t), decode=False, cells=cells[None, t : t + 1])
        clean.append(session.pending.latents)
        by_place.append(session.last_seen)
    assert by_place[0] is None and all(seen is not None for seen in by_place[1:])
    clean = torch.cat(clean)[None]
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    views = Views.of(walk.poses, walk.actions, np.arange(CONTEXT + STEPS) >= CONTEXT, cells)
    wanted = seen_on_walk(views, model.config)
    for found, given in zip(by_place, wanted[CONTEXT:], strict=True):
        np.testing.assert_array_equal(found, given)
    told = told_on_walk(views.changes, walk.poses, later=True)
    assert not np.isnan(told[CONTEXT + 2 :, 0]).all()
    view = torch.from_numpy(voxel_views(walk.poses, cells, told))[None]
    ones = torch.ones(1, CONTEXT + STEPS)
    seen, counts = listed(wanted)
    same = teacher_forced(model, walk, clean, noisy, ones, seen=(seen, counts), view=view)
    assert relative(torch.cat(velocities[-STEPS:], 1), same[:, CONTEXT:]) < 1e-4
    for other in ({"seen": (seen, counts.clamp_max(1)), "view": view}, {"seen": (seen, counts), "view": view[..., :8]}):
        assert relative(teacher_forced(model, walk, clean, noisy, ones, **other)[:, CONTEXT:], same[:, CONTEXT:]) > 1e-3


def test_rows_of_a_batch_see_their_own_past():
    model = build(fusion="union", nearest_views=FEW, keyframe_blocks=1.5, keyframe_degrees=20.0, new_view_steps=2)
    walks = [make_walk(30, seed) for seed in range(3)]
    poses = [[walks[i].poses[3 + t] + [0.3 if t else 50.0 * (i == 1), 0, 0, 0, 0] for t in range(4)] for i in range(3)]
    alone, kinds = [], []
    for i, walk in enumerate(walks):
        session = model.start(i)
        walk.observe(session, 0, 10 + 4 * i)
        found = [look(model, session, pose) for pose in poses[i]]
        alone.append([frame[0] for frame, _ in found])
        kinds.append([seen is None for _, seen in found])
    assert kinds[1][0] and not kinds[0][0], "rows of one pass see by place and by content"
    sessions = [model.start(i) for i in range(3)]
    for i, (walk, session) in enumerate(zip(walks, sessions, strict=True)):
        walk.observe(session, 0, 10 + 4 * i)
    for t in range(4):
        frames = model.step(sessions, np.zeros((3, 1, 25), np.float32), np.stack([row[t] for row in poses])[:, None])
        for i in range(3):
            assert np.abs(frames[i].astype(int) - alone[i][t].astype(int)).max() <= 1


def test_other_modes_stay_what_they_are():
    plain, placed = (build(fusion="union", window=4, nearest_views=few, **DISTANCES) for few in (0, FEW))
    walk = make_walk(CONTEXT + 1)
    for mode in ("content", "dense", "decay", "off", "window"):
        frames = []
        for model in (plain, placed):
            session = model.start(1, memory="memory" if model is plain and mode == "content" else mode)
            walk.observe(session, 0, CONTEXT)
            frame, seen = look(model, session, walk.poses[5])
            frames.append(frame)
            assert seen is None
        np.testing.assert_array_equal(*frames)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="nearest_views"):
        tiny().with_overrides(nearest_views=4, fusion="gated")
    with pytest.raises(ValueError, match="nearest_views"):
        tiny().with_overrides(fusion="union", nearest_views=-1)
    with pytest.raises(ValueError, match="nearest_views"):
        wan_debug().with_overrides(nearest_views=4, fusion="union")
