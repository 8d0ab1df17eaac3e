"""Which generated frames memory keeps, and that those it does not keep leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decmem_env.model.changes import hands_used
from decmem_env.model.config import preset
from decmem_env.model.keyframes import new_views, shows_new
from decmem_env.model.session import Pending

from decmem_env.conventions.actions import Action

from .conftest import build, make_walk

SEEN = 6


def poses_of(*offsets):
    """Poses [1, n, 5] beside the last of the seen ones: (blocks ahead, degrees of yaw)."""
    pose = make_walk(SEEN).poses[-1]
    return np.stack([pose + np.array([x, 0.0, 0.0, 0.0, yaw]) for x, yaw in offsets])[None]


def begin(model, seed=1, memory="memory"):
    session = model.start(seed=seed, memory=memory)
    make_walk(SEEN).observe(session, 0, SEEN)
    return session


def play(model, session, offsets, hands=()):
    """Step along; frames [n, H, W, 3]."""
    poses = poses_of(*offsets)
    frames = []
    for t in range(poses.shape[1]):
        action = np.zeros((1, 1, 25), np.float32)
        action[..., Action.PLACE] = t in hands
        frames.append(model.step([session], action, poses[:, t : t + 1])[0, 0])
    return np.stack(frames)


@pytest.fixture(scope="module")
def frugal():
    return build(keyframe_blocks=1.0, keyframe_degrees=8.0)


def kept(session):
    """Frame numbers of the generated frames in memory."""
    return [int(i) for i in session.memory_frames if i >= SEEN]


def test_views_beside_known_ones_are_forgotten(frugal):
    session = begin(frugal)
    used = frugal.pool.used
    # Frame by frame: beside a seen view, far away, beside that one, turned there, stepped there, and the first again.
    play(frugal, session, [(0.5, 0.0), (30.0, 0.0), (30.5, 6.0), (30.0, 10.0), (32.0, 0.0), (0.5, 0.0), (0.5, 0.0)])
    assert kept(session) == [SEEN + 1, SEEN + 3, SEEN + 4]
    assert frugal.pool.used - used == 3 + 1 + 1  # the true frame that was pending, and the one being denoised
    assert session.next_frame == SEEN + 7
    assert session.stats["covered_frames"] == 3  # the last frame is still pending
    session.close()


def test_yaw_is_compared_around_the_circle(frugal):
    session = begin(frugal)
    play(frugal, session, [(0.0, 362.0), (0.0, 180.0), (0.0, -178.0), (0.0, 0.0)])
    assert kept(session) == [SEEN + 1]
    session.close()


@pytest.mark.parametrize("memory", ["every", "off", "window"])
def test_other_modes_keep_every_frame(frugal, memory):
    session = begin(frugal, memory=memory)
    play(frugal, session, [(0.0, 0.0)] * 4)
    assert kept(session) == [SEEN, SEEN + 1, SEEN + 2]
    session.close()


def test_models_without_distances_keep_every_frame():
    model = build()
    session = begin(model)
    play(model, session, [(0.0, 0.0)] * 3)
    assert kept(session) == [SEEN, SEEN + 1]


def test_hands_uncover_the_views_around_them(frugal):
    session = begin(frugal)
    # The change itself (frame 1) is kept; then what it does not cover, and nothing twice.
    play(frugal, session, [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 12.0), (0.0, 12.0), (0.0, 0.0)], hands=(1,))
    assert kept(session) == [SEEN + 1, SEEN + 3]
    session.close()


def test_hands_far_away_uncover_nothing(frugal):
    session = begin(frugal)
    play(frugal, session, [(40.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], hands=(0,))
    assert kept(session) == [SEEN]
    session.close()


def test_forks_and_snapshots_know_of_the_hands(frugal):
    session = begin(frugal)
    play(frugal, session, [(0.0, 0.0), (0.0, 20.0)], hands=(0,))
    again = frugal.restore(session.snapshot())
    (fork,) = session.fork(1)
    for one in (session, again, fork):
        play(frugal, one, [(0.0, 28.0), (0.0, 40.0)])
        assert kept(one) == [SEEN, SEEN + 1]
        assert one.bank.hands.tolist() == [False] * SEEN + [True, False]
        one.close()


@pytest.mark.parametrize("changes", [{}, {"steps": 3}, {"guidance": 2.0}, {"fusion": "union"}])
def test_a_batch_forgets_as_single_worlds_do(changes):
    model = build(keyframe_blocks=1.0, keyframe_degrees=8.0, **changes)
    walks = [[(0.0, 0.0)] * 6, [(30.0, 15.0 * i) for i in range(6)], [(30.0 + i // 2 * 2.0, 0.0) for i in range(6)]]
    alone, tables = [], []
    for seed, offsets in enumerate(walks):
        session = begin(model, seed)
        alone.append(play(model, session, offsets))
        tables.append(kept(session))
        session.close()
    assert [len(table) for table in tables] == [0, 5, 3]
    sessions = [begin(model, seed) for seed in range(3)]
    poses = np.concatenate([poses_of(*offsets) for offsets in walks])
    for t in range(6):
        made = model.step(sessions, np.zeros((3, 1, 25), np.float32), poses[:, t : t + 1])
        for row in range(3):
            assert np.abs(made[row, 0].astype(int) - alone[row][t].astype(int)).max() <= 1
    assert [kept(session) for session in sessions] == tables
    counted = sum(len(session.bank) for session in sessions)
    assert model.pool.used == counted + len(model.pool.scratch(3 * (2 if "guidance" in changes else 1)))


def test_what_is_forgotten_is_not_seen_either():
    """The frame after a forgotten one is the same as if that frame had never been."""
    model = build(keyframe_blocks=1.0, keyframe_degrees=8.0)
    straight, detour = begin(model), begin(model)
    play(model, detour, [(0.5, 3.0)])
    detour.generator.set_state(straight.generator.get_state())
    detour.next_frame = straight.next_frame
    target = [(0.2, 1.0)]
    frames = [play(model, session, target)[0].astype(int) for session in (straight, detour)]
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_hands_are_found_in_every_frame_of_a_latent():
    actions = np.zeros((3, 100), np.float32)
    actions[1, 75 + Action.ATTACK] = 1.0
    actions[2, Action.FORWARD] = 1.0
    assert hands_used(actions).tolist() == [False, True, False]


DISTANCES = preset("debug").with_overrides(keyframe_blocks=1.0, keyframe_degrees=8.0)


def found_new(poses):
    """Numbers of the frames of a walk that show something new."""
    return np.flatnonzero(new_views(poses, DISTANCES)).tolist()


def line(count, blocks=0.0, pitch=0.0, yaw=0.0):
    """Poses [count, 5] that go on by this much a frame."""
    return np.array([30.0, 12.0, 40.0, 0.0, 0.0]) + np.arange(count)[:, None] * (blocks, 0.0, 0.0, pitch, yaw)


def test_a_straight_walk_shows_something_new_about_every_distance():
    assert found_new(line(21, blocks=0.25)) == [0, 5, 10, 15, 20]
    assert found_new(line(9, blocks=0.5)) == [0, 3, 6]
    assert found_new(line(5, blocks=2.0)) == [0, 1, 2, 3, 4]


def test_standing_still_shows_something_new_once():
    assert found_new(line(8)) == [0]
    assert found_new(np.tile(line(8), (2, 1))) == [0]


@pytest.mark.parametrize("turn", [{"yaw": 3.0}, {"yaw": -3.0}, {"pitch": 3.0}])
def test_a_turn_beyond_the_angle_is_new(turn):
    assert found_new(line(9, **turn)) == [0, 3, 6]


def test_a_whole_turn_ends_at_the_view_it_began_with():
    assert found_new(line(37, yaw=10.0)) == list(range(36))


def test_the_way_back_is_known():
    there = line(11, blocks=0.5)
    assert found_new(np.concatenate([there, there[::-1]])) == found_new(there)


def chunk_of(poses):
    own, actions = np.ones(len(poses), np.bool_), np.zeros((len(poses), 25), np.float32)
    cells, told = np.full((len(poses), 3), np.nan), np.full((len(poses), 0, 4), np.nan)
    return Pending.of(torch.zeros(len(poses), 1, 1, 1), actions, poses, np.arange(len(poses)), own, cells, told)


def new(known, pending, frames):
    return shows_new(known, pending, frames, DISTANCES)


def test_frames_about_to_be_remembered_count_only_where_they_are():
    far, beside = line(2, blocks=40.0)[1:], line(2, blocks=40.5)[1:]
    seen = line(1)
    assert new(seen, None, chunk_of(beside))
    assert not new(seen, chunk_of(far), chunk_of(beside))
    assert not new(seen, None, chunk_of(seen))
    assert new(seen[:0], None, chunk_of(seen))


def test_one_new_frame_makes_a_chunk_new():
    seen = line(1)
    assert not new(seen, None, chunk_of(line(4, blocks=0.3)))
    assert new(seen, None, chunk_of(line(5, blocks=0.3)))
