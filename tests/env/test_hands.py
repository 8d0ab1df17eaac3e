"""Which cell a hand meets: known to players, told to the model, by every way that leads to it."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from decmem_env.conventions.actions import Action, parse_action_string
from decmem_env.hand_reader import HandReader
from decmem_env.predicted_player import PredictedPlayer
from decmem_env.revisit.edit_scripts import build_edit_scripts
from decmem_env.rollout import roll_out
from decmem_env.worlds import generate_world

from .conftest import DREAM, SMALL
from .predicted import TrueSight, save_checkpoint

PLACE, BREAK = parse_action_string("P")[0], parse_action_string("B")[0]


def test_a_player_that_follows_knows_what_its_hand_meets():
    """On every script of the edits measure, with a true map: the cell that really changed."""
    world = generate_world(7_000_001)
    scripts = build_edit_scripts(world, 2)
    assert {item.script.kind for item in scripts} == {"place", "break"}
    for item in scripts:
        walk = item.script
        players = TrueSight([world])
        player = PredictedPlayer(walk.poses[item.time - 12])
        for t in range(item.time - 12, item.time + 1):
            cell = players.follow([player], walk.actions[t : t + 1], walk.poses[t : t + 1])
            assert np.isnan(cell).all() == (t < item.time)
            if t < item.time:
                players.observe([player], None, None)
        _, x, z, y, _ = item.edit[0]
        np.testing.assert_array_equal(cell, [[x, y, z]])
        np.testing.assert_array_equal(player.touched, cell[0])
        x, y, z = cell[0].astype(int) - player.origin
        assert player.known[x, z, y].argmax() == (1 if walk.kind == "place" else 0)
        again = players.follow([player], walk.actions[item.time + 1 :][:1], walk.poses[item.time + 1 :][:1])
        assert np.isnan(again).all()


def test_where_nothing_is_known_nothing_is_told():
    player = PredictedPlayer(np.array([0.5, 0.0, 0.5, -30.0, 0.0]))
    cells = TrueSight([]).follow([player], np.stack([BREAK]), player.pose[None])
    assert np.isnan(cells).all() and not player.known.any()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "debug")


@pytest.mark.parametrize(("source", "known"), [("truth", True), ("predictor", True), ("kinematic", False)])
def test_environments_tell_the_model(source, known, checkpoint, monkeypatch):
    """Looking down from the spawn, the hand meets the ground."""
    env = gym.make(DREAM, **SMALL[DREAM] | {"checkpoint": checkpoint}, pose_source=source, action_mode="vector")
    env.reset(seed=0, options={"world_seed": 9_000_001})
    own, heard = env.unwrapped, []
    model = own._rows.backend.model
    step = model.step
    monkeypatch.setattr(model, "step", lambda *a, cells=None, **k: heard.append(cells) or step(*a, cells=cells, **k))
    if source == "predictor":  # its map is random here: let it know the ground
        player = own._row.player
        below = np.floor(player.pose[:3]).astype(int) - player.origin - [0, 1, 0]
        around = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 2), -1).reshape(-1, 2)
        ground = np.stack([below[0] + around[:, 0], np.full(len(around), below[1]), below[2] + around[:, 1]], 1)
        player.learn(ground, np.tile(np.float32([-1.0, 2.0, -1.0]), (len(ground), 1)))
        monkeypatch.setattr(own._rows.backend.poses, "observe", lambda *a: None)
    for action in (parse_action_string("J*3").sum(0), BREAK, parse_action_string("N")[0]):
        env.step(action)
    told = [not np.isnan(cells).any() for cells in heard]
    assert told == [False, known, False] and all(cells.shape == (1, 1, 3) for cells in heard)
    env.close()


def test_a_roll_out_asks_the_reader_and_shows_it_what_was_made():
    class Model:
        frames_per_step = 1

        def step(self, sessions, actions, poses, cells=None):
            told.append(cells)
            return np.zeros((len(sessions), 1, 2, 2, 3), np.uint8)

    class Reader:
        def act(self, actions, poses):
            return np.full((*actions.shape[:2], 3), float(len(told)))

        def see(self, sessions):
            shown.append(list(sessions))

    told, shown = [], []
    roll_out(Model(), ["a", "b"], np.zeros((2, 3, 25), np.float32), np.zeros((2, 3, 5)), hands=Reader())
    assert [cells[0, 0, 0] for cells in told] == [0.0, 1.0, 2.0] and shown == [["a", "b"]] * 3
    assert told[0].shape == (2, 1, 3)


def test_a_reader_is_there_only_where_it_is_needed():
    deaf = SimpleNamespace(config=SimpleNamespace(voxel_hands=False), pose_predictor=object())
    blind = SimpleNamespace(config=SimpleNamespace(voxel_hands=True), pose_predictor=None)
    still = np.zeros((4, 25), np.float32)
    busy = still.copy()
    busy[2, Action.PLACE] = 1.0
    able = SimpleNamespace(config=SimpleNamespace(voxel_hands=True), pose_predictor=object())
    assert HandReader.where_needed(deaf, [], busy) is None and HandReader.where_needed(blind, [], busy) is None
    assert HandReader.where_needed(able, [], still) is None
