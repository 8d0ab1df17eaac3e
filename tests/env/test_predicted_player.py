"""Players in the world that frames show: with a true map they do what true players do; rows keep their state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel
from decmem_env.model.checkpoint import WEIGHTS
from decmem_env.model.pose_predictor import FILE

from decmem_env.conventions.actions import parse_action_string
from decmem_env.pose_score import Scorer, contact_walks, errors, reckoned, set_right, stands
from decmem_env.predicted_player import PredictedPlayer
from decmem_env.worlds import Simulator, generate_world

from .predicted import TrueSight, save_checkpoint

DREAM, TRUE = "DecMem-Minecraft-v0", "DecMem-Voxel-v0"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "debug")


@pytest.fixture(scope="module")
def walks():
    return contact_walks(range(7_000_000, 7_000_003), 150)


@pytest.mark.parametrize("method", ["true_open", "true_closed"])
def test_with_a_true_map_a_player_moves_as_the_true_one(walks, method, monkeypatch):
    assert walks.contact.min() >= 0.2 and errors(reckoned(walks), walks).mean() > 1.5
    scorer = Scorer.__new__(Scorer)
    scorer.walks, scorer.progress, scorer.players = walks, lambda count: None, TrueSight(walks.worlds)
    monkeypatch.setattr(Scorer, "true_latents", lambda self, t, poses: None)
    assert errors(scorer.run(method), walks).max() < 1e-6


@pytest.mark.skipif(not (WEIGHTS / "tiny" / FILE).is_file(), reason="no pose predictor is bundled")
def test_the_bundled_predictor_is_twice_as_good_as_dead_reckoning():
    walks = contact_walks(range(7_000_000, 7_000_003), 100)
    scorer = Scorer(WorldModel.from_pretrained("tiny", device="cpu"), walks, lambda count: None)
    reckoning = errors(reckoned(walks), walks).mean()
    assert errors(scorer.run("true_closed"), walks).mean() < 0.5 * reckoning


def test_the_map_moves_along_on_long_ways():
    player = PredictedPlayer(np.array([5.5, -3.0, 7.5, 0.0, 90.0]))
    players = TrueSight([generate_world(7_000_000)])
    cell = np.array([[2, -5, 7]])
    player.learn(cell - player.origin, np.array([[-1.0, 2.0, -1.0]], np.float32))
    before = player.origin.copy()
    for _ in range(480):
        player.simulator.teleport(0, player.simulator.poses[0])
        pose = players.move([player], parse_action_string("W"))[0]
    assert pose[0] == pytest.approx(5.5 - 480 * 0.4317) and not np.array_equal(player.origin, before)
    assert player.simulator.blocks.max() == 0  # left behind
    player.place(np.array([0.5, -3.0, 7.5, 0.0, 90.0]))
    np.testing.assert_allclose(player.pose, [0.5, -3.0, 7.5, 0.0, 90.0])


def test_a_block_keeps_its_place_when_the_window_moves():
    player = PredictedPlayer(np.array([0.5, 0.0, 0.5, 0.0, 0.0]))
    player.learn(np.array([[100, 2, -3]]) - player.origin, np.array([[-1.0, 2.0, -1.0]], np.float32))
    player.place(np.array([98.5, 0.0, 0.5, 0.0, 0.0]))
    x, y, z = np.array([100, 2, -3]) - player.origin
    assert player.origin[0] > -128 and np.count_nonzero(player.simulator.blocks) == 1
    assert player.simulator.blocks[0, x, z, y] and player.known[x, z, y].tolist() == [-1, 2, -1]


def test_walls_in_the_map_never_hold_the_body():
    player = PredictedPlayer(np.array([0.5, 0.0, 0.5, 0.0, 0.0]))
    around = np.stack(np.meshgrid(*[np.arange(-1, 3)] * 3), -1).reshape(-1, 3)
    player.learn(around - player.origin, np.tile(np.array([[-1.0, 2.0, -1.0]], np.float32), (len(around), 1)))
    player.free_body()
    x, y, z = np.array([0, 0, 0]) - player.origin
    assert player.simulator.blocks[0, x, z, y] == 0 and player.simulator.blocks[0, x, z, y + 1] == 0
    assert player.simulator.blocks[0, x, z, y - 1] and player.simulator.blocks[0, x + 1, z, y]


def test_walks_begin_where_a_player_stands(walks):
    for world, poses in zip(walks.worlds, walks.poses, strict=True):
        assert stands(world, poses[0])
    up = np.array([0.0, 0.5, 0.0, 0.0, 0.0])
    assert not stands(walks.worlds[0], walks.poses[0, 0] + up)


def test_a_speed_is_inferred_where_the_step_was_wrong():
    player = PredictedPlayer(np.array([0.5, 5.0, 0.5, 0.0, 0.0]))
    before, true = np.array([0.5, 5.0, 0.5, 0.0, 0.0]), np.array([0.5, 4.78, 0.5, 0.0, 0.0])
    set_right(player, before, before, true)
    assert player.simulator.rise[0] == pytest.approx(-0.44) and player.climb == pytest.approx(-0.22)
    set_right(player, true, before, np.array([0.5, 6.0, 0.5, 0.0, 0.0]))
    assert player.simulator.rise[0] == 0.0 and player.climb == pytest.approx(1.22)


def test_breaking_and_placing_change_the_map():
    world = generate_world(7_000_000)
    sight, player = TrueSight([world]), PredictedPlayer(world.spawn)
    true = Simulator([world])
    for action in parse_action_string("J J J B N P"):
        sight.observe([player], torch.zeros(1), [False])
        pose = sight.move([player], action[None])[0]
        np.testing.assert_allclose(pose, true.step(action[None])[0])
        sight.worlds = [torch.from_numpy(true.blocks[0])]
    assert len(true.edits) == 2 and len(player.simulator.edits) == 2
    kept = PredictedPlayer.restore(player.snapshot())
    assert kept.simulator.edits == player.simulator.edits
    assert np.array_equal(kept.known, player.known)
    assert np.array_equal(kept.simulator.blocks, player.simulator.blocks)


@pytest.mark.parametrize("env_id", [DREAM], indirect=True)
class TestEnvironment:
    def test_predictor_is_used_kept_and_batched(self, make, make_vec, checkpoint):
        env = make(checkpoint=checkpoint, pose_source="predictor").unwrapped
        _, info = env.reset(seed=3)
        assert info["pose_source"] == "predictor"
        for action in (1, 1, 9):
            env.step(action)
        frozen = env.snapshot()
        plan = (1, 5, 1, 10, 1)
        first = [env.step(action) for action in plan]
        assert first[-1][4]["pose_source"] == "predictor"
        env.restore(frozen)
        again = [env.step(action) for action in plan]
        env.restore(frozen)
        child = env.fork(2)[0]
        forked = [child.step(action) for action in plan]
        for a, b, c in zip(first, again, forked, strict=True):
            assert np.array_equal(a[0], b[0]) and np.array_equal(a[0], c[0])
            assert np.array_equal(a[4]["pose"], b[4]["pose"]) and np.array_equal(a[4]["pose"], c[4]["pose"])
        vector = make_vec(2, checkpoint=checkpoint, pose_source="predictor")
        vector.reset(seed=[3, 4])
        for action in (1, 1, 9, *plan):
            infos = vector.step(np.array([action, 1]))[4]
        assert list(infos["pose_source"]) == ["predictor"] * 2
        np.testing.assert_allclose(infos["pose"][0], first[-1][4]["pose"], atol=1e-3)

    def test_default_for_starts_without_a_world(self, make, checkpoint):
        frames = np.zeros((3, 96, 160, 3), np.uint8)
        env = make(checkpoint=checkpoint)
        assert env.reset(seed=0, options={"frames": frames})[1]["pose_source"] == "predictor"
        assert env.step(1)[4]["pose_source"] == "predictor"
        assert env.reset(seed=0)[1]["pose_source"] == "truth"
        kinematic = make(checkpoint=checkpoint, pose_source="kinematic")
        assert kinematic.reset(seed=0, options={"frames": frames})[1]["pose_source"] == "kinematic"
        given = make(checkpoint=checkpoint, pose_source="predictor", action_mode="pose")
        assert given.reset(seed=0)[1]["pose_source"] == "given"

    def test_a_checkpoint_without_one_says_how_to_get_it(self, make):
        with pytest.raises(ValueError, match=r"no pose\.safetensors: train one with `decmem train pose"):
            make(pose_source="predictor")
        with pytest.raises(ValueError, match="its own physics"):
            make(TRUE, pose_source="predictor")
