"""What a frame sees where memory is anchored by place, in sessions and in training alike."""

import numpy as np
import pytest
import torch
from decmem_env.model.config import tiny, wan_debug
from decmem_env.model.keyframes import new_views
from decmem_env.model.nearest_views import Views, apart, nearest, nearest_of_walk

from decmem_env.conventions.actions import Action

from .conftest import build, make_walk
from .test_streaming import CONTEXT, STEPS, record_velocities, relative, stream, teacher_forced

FEW = 5


def walk_of(length, seed=0):
    """Walks about, stands still for a while, and comes back."""
    rng = np.random.default_rng(seed)
    poses = np.cumsum(rng.normal(size=(length, 5)) * (0.4, 0.0, 0.4, 2.0, 12.0), 0)
    poses[length // 3 : length // 2] = poses[length // 3]
    quarter = length // 4
    poses[length - quarter :] = poses[:quarter][::-1]
    return poses


def seen_of(poses, hands=None, generated=None):
    nowhere = np.zeros(len(poses), bool)
    return Views(poses, nowhere if hands is None else hands, nowhere if generated is None else generated)


def test_the_very_pose_is_seen_however_long_the_past_is():
    poses = walk_of(600)
    for t in (10, 250, 590):
        seen = nearest(seen_of(poses), poses[t], FEW)
        assert len(seen) == FEW and apart(poses[seen], poses[t]).min() == 0.0
        assert (np.diff(seen) > 0).all()


def test_views_that_show_the_same_are_seen_once():
    poses = walk_of(90)
    poses[30:70] = poses[30]
    seen = nearest(seen_of(poses), poses[30], FEW)
    assert ((seen >= 30) & (seen < 70)).sum() == 1 and 69 in seen  # the latest of equals
    assert len(nearest(seen_of(poses[30:70]), poses[30], FEW)) == 1
    assert len(nearest(seen_of(poses[:0]), poses[30], FEW)) == 0


def test_what_was_seen_comes_before_what_was_dreamed():
    poses, dreamed = np.zeros((6, 5)), np.arange(6) >= 3
    poses[:, 0] = [3.0, 1.2, 1.9, 0.2, 0.6, 1.8]  # 1.5, 0.6, 0.95; and 0.1, 0.3, 0.9 "near" apart
    here = np.zeros(5)
    assert nearest(seen_of(poses, generated=dreamed), here, 3).tolist() == [1, 2, 3]
    assert nearest(seen_of(poses), here, 3).tolist() == [1, 3, 4]
    hands = np.arange(6) == 3
    assert nearest(seen_of(poses, hands, dreamed), here, 3).tolist() == [3, 4, 5]  # but not if it is out of date


def test_what_came_before_a_change_gives_way_to_what_came_after():
    poses, hands = np.zeros((8, 5)), np.zeros(8, bool)
    poses[:, 4] = 8.0 * np.arange(8)  # half a "near" apart
    hands[4] = True
    seen = nearest(seen_of(poses, hands), poses[3], 3)
    assert seen.tolist() == [4, 5, 6]  # not 3, which is nearer but older than the change
    poses[:, 0] = 40.0 * np.arange(8)  # the change is far away
    assert nearest(seen_of(poses, hands), poses[3], 3).tolist() == [2, 3, 4]
    poses[:] = 0.0  # the same view before and after: both are seen
    assert nearest(seen_of(poses, hands), poses[0], 3).tolist() == [3, 7]


@pytest.mark.parametrize("worked", [False, True])
def test_a_walk_sees_what_each_of_its_frames_would(worked):
    poses, hands = walk_of(150, 3), np.zeros(150, bool)
    hands[[40, 90, 91]] = worked
    views = seen_of(poses, hands, (np.arange(150) > 60) & worked)
    lists, counts = nearest_of_walk(views, FEW)
    for t in range(150):
        wanted = nearest(views.before(t), poses[t], FEW)
        assert np.sort(lists[t, : counts[t]]).tolist() == wanted.tolist()
        distances = apart(poses[lists[t, : counts[t]]], poses[t])
        assert worked or (np.diff(distances) > -1e-3).all()  # the nearest first


def test_frames_that_are_not_kept_are_not_seen():
    poses, hands = walk_of(80), np.zeros(80, bool)
    kept = np.arange(80) % 3 == 0
    lists, counts = nearest_of_walk(seen_of(poses, hands), FEW, kept)
    assert all(kept[lists[t, : counts[t]]].all() for t in range(80)) and counts[-1] == FEW


def test_a_change_makes_the_views_around_it_new():
    config = tiny()
    poses, hands = np.zeros((9, 5)), np.zeros(9, bool)
    hands[4] = True
    assert np.flatnonzero(new_views(poses, config, hands)).tolist() == [0, 4]
    poses[4, 0] = 1.5  # beside, from where the view of the others is not seen
    poses[5:, 0] = 0.1
    assert np.flatnonzero(new_views(poses, config, hands)).tolist() == [0, 4, 5]
    poses[4, 0] = 40.0
    assert np.flatnonzero(new_views(poses, config, hands)).tolist() == [0, 4]


def test_streaming_equals_one_pass(noises, monkeypatch):
    model, walk = build(fusion="union", nearest_views=FEW), make_walk(CONTEXT + STEPS)
    walk.actions[[7, CONTEXT + 2], Action.PLACE] = 1.0
    velocities = record_velocities(monkeypatch, model)
    session = model.start(1)
    clean = stream(model, walk, session)
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    hands, own = walk.actions[:, Action.PLACE] > 0.5, np.arange(CONTEXT + STEPS) >= CONTEXT
    seen = tuple(torch.from_numpy(part)[None] for part in nearest_of_walk(seen_of(walk.poses, hands, own), FEW))
    ones = torch.ones(1, CONTEXT + STEPS)
    wanted = teacher_forced(model, walk, clean, noisy, ones, seen=seen)
    assert relative(torch.cat(velocities[-STEPS:], 1), wanted[:, CONTEXT:]) < 1e-4
    assert sorted(session.last_seen) == sorted(seen[0][0, -1, : seen[1][0, -1]].tolist())
    fewer = teacher_forced(model, walk, clean, noisy, ones, seen=(seen[0], seen[1].clamp_max(2)))
    assert relative(fewer[:, CONTEXT:], wanted[:, CONTEXT:]) > 1e-3
    with pytest.raises(ValueError, match="nearest_views"):
        teacher_forced(model, walk, clean, noisy, ones)


def test_rows_of_a_batch_see_their_own_past():
    model = build(fusion="union", nearest_views=FEW, keyframe_blocks=0.5, keyframe_degrees=6.0, new_view_steps=2)
    walks = [make_walk(30, seed) for seed in range(3)]
    alone = []
    for i, walk in enumerate(walks):
        session = model.start(i)
        walk.observe(session, 0, 10 + 4 * i)
        alone.append([model.step([session], *walk.chunk(20 + t))[0] for t in range(4)])
    sessions = [model.start(i) for i in range(3)]
    for i, (walk, session) in enumerate(zip(walks, sessions, strict=True)):
        walk.observe(session, 0, 10 + 4 * i)
    for t in range(4):
        chunks = [walk.chunk(20 + t) for walk in walks]
        frames = model.step(sessions, *(np.concatenate(part) for part in zip(*chunks, strict=True)))
        for i in range(3):
            assert np.abs(frames[i].astype(int) - alone[i][t].astype(int)).max() <= 1


def test_other_modes_stay_what_they_are():
    plain, placed = build(fusion="union", window=4), build(fusion="union", window=4, nearest_views=FEW)
    walk = make_walk(CONTEXT + 1)
    for mode in ("dense", "decay", "off", "window"):
        frames = []
        for model in (plain, placed):
            session = model.start(1, memory=mode)
            walk.observe(session, 0, CONTEXT)
            frames.append(model.step([session], *walk.chunk(CONTEXT)))
            assert session.last_seen is None
        np.testing.assert_array_equal(*frames)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="nearest_views"):
        tiny().with_overrides(nearest_views=4, fusion="gated")
    with pytest.raises(ValueError, match="nearest_views"):
        tiny().with_overrides(nearest_views=-1)
    with pytest.raises(ValueError, match="nearest_views"):
        wan_debug().with_overrides(nearest_views=4, fusion="union")
