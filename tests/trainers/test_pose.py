"""The pose stage: its labels are the true surroundings, it learns, and its export is a checkpoint."""

import numpy as np
import pytest
import torch
from decmem_env.model.pose_predictor import AIR, CELLS, LAYERS, SIDE, SOLID, WATER, load_pose, template
from decmem_env.trainers import run_stage
from decmem_env.trainers.config import ConfigError, load_config
from decmem_env.trainers.curves import read_log
from decmem_env.trainers.data.surroundings import Followers, SurroundingsBatch, split_poses, surroundings
from decmem_env.trainers.distributed import Ranks
from decmem_env.trainers.files import StateError
from decmem_env.trainers.pose import PoseTask, disturbed, forget, surface_weight
from decmem_env.trainers.profiling import Profile

from decmem_env.predicted_player import PredictedPlayer, PredictedPlayers
from decmem_env.worlds import generate_world, sample_trajectories
from decmem_env.worlds.blocks import ID


def test_surroundings_are_the_blocks_as_the_physics_has_them():
    blocks = torch.zeros(32, 40, 16, dtype=torch.uint8)
    blocks[10, 12, 3], blocks[11, 12, 3] = ID["brick"], ID["water"]
    found = surroundings(blocks, torch.tensor([[10, 4, 12], [1, 1, 38], [16, 15, 20]])).view(3, SIDE, SIDE, LAYERS)
    x = z = SIDE // 2
    assert found[0, x, z, 3] == SOLID and found[0, x + 1, z, 3] == WATER and found[0, x - 1, z, 3] == AIR
    assert (found[1, :5] == SOLID).all() and (found[1, :, 8:] == SOLID).all()  # beyond the sides
    assert (found[1, 6, 6, :3] == SOLID).all() and found[1, 6, 6, 3] == AIR  # below the bottom
    assert (found[2] == AIR).all()  # above the top


def test_poses_on_a_block_belong_to_the_cell_above_it():
    cell, inner, angles = split_poses(torch.tensor([[1.25, 5.0 - 1e-6, -0.5, 15.0, -30.0]], dtype=torch.float64))
    assert cell.tolist() == [[1, 5, -1]] and angles.tolist() == [[15.0, -30.0]]
    torch.testing.assert_close(inner, torch.tensor([[0.25, 0.0, 0.5]]), atol=2e-6, rtol=0)


def test_borders_weigh_more_than_what_nobody_touches():
    labels = torch.zeros(1, 1, SIDE, SIDE, LAYERS, dtype=torch.int64)
    labels[..., :4] = SOLID
    weight = surface_weight(labels.view(1, 1, CELLS)).view(SIDE, SIDE, LAYERS)
    assert (weight[..., 3:5] == 1).all() and (weight[..., :3] < 0.2).all() and (weight[..., 5:] < 0.2).all()


def test_disturbed_latents_keep_some_pieces_clean():
    torch.manual_seed(0)
    latents = torch.randn(64, 2, 4, 6, 10)
    other, changed = disturbed(latents)
    change = (other - latents).square().mean((1, 2, 3, 4)).sqrt()
    assert torch.equal(change > 0, changed) and 0.1 < changed.float().mean() < 0.5 and 0.2 < change.max() < 1.2


class _Pool:
    count, length = 3, 20

    def __init__(self):
        self.stamps = np.arange(3)

    def pieces(self, which, start, frames):
        return which.copy(), start.copy()


def test_rows_follow_their_trajectory_to_its_end():
    pool, rng = _Pool(), np.random.default_rng(0)
    rows = Followers(pool, 64, 6)
    (slot, start), fresh = rows.next(rng)
    assert fresh.all() and set(slot) == {0, 1, 2} and start.min() == 0 and start.max() == 14
    for _ in range(10):
        (now, at), fresh = rows.next(rng)
        assert np.array_equal(fresh, start + 6 > 14) and (at[fresh] < 6).all()
        assert (now[~fresh] == slot[~fresh]).all() and (at[~fresh] == start[~fresh] + 6).all()
        slot, start = now, at
    pool.stamps[1] = 7  # another trajectory took the place
    fresh = rows.next(rng)[1]
    assert fresh[slot == 1].all() and not fresh.all()


def test_what_is_far_is_forgotten():
    known = torch.ones(2, 32**3, 3)
    cells = torch.tensor([[0, 5, 0], [-3, 70, 100]])
    forget(known, cells)
    grid = known.view(2, 32, 32, 32, 3)  # x, z, y
    for kept, (x, y, z) in zip(grid, cells.tolist(), strict=True):
        for dx, dy, dz in ((0, 0, 0), (14, 0, -14), (-14, 10, 14), (3, -10, 0)):
            assert kept[(x + dx) % 32, (z + dz) % 32, (y + dy) % 32].all()
        for dx, dy, dz in ((15, 0, 0), (-16, 0, 0), (0, 0, -15), (0, 11, 0), (0, -11, 0)):
            assert not kept[(x + dx) % 32, (z + dz) % 32, (y + dy) % 32].any()


def test_training_and_playing_make_the_same_map(runs, monkeypatch):
    cpu = torch.device("cpu")
    task = PoseTask(load_config("debug_pose", {}), Ranks("cpu"), str(runs["autoencoder"]), Profile(cpu))
    world = generate_world(7_000_001)
    poses = sample_trajectories([world], 16, np.random.default_rng(0), "contact", False).poses[0]
    poses = poses[np.sort([*range(12), 3, 3, 5, 5])]  # it stands still twice, once where a piece ends
    cell, inner, angles = split_poses(torch.from_numpy(poses))
    climb = torch.from_numpy(np.diff(poses[:, 1], prepend=poses[0, 1])).float()
    labels = surroundings(torch.from_numpy(world.blocks), cell).long()
    latents, true = torch.randn(16, 8, 6, 10), torch.zeros(16, dtype=torch.bool)
    views = np.concatenate([poses, climb[:, None].double().numpy()], 1)
    moved = torch.from_numpy(np.append(True, (np.diff(views, axis=0) != 0).any(1)))
    assert moved.any() and not moved.all()
    known = task._empty_map(1)
    for part in (slice(8), slice(8, 16)):
        piece = (one[part][None] for one in (latents, cell, inner, angles, climb, labels, true, moved))
        task._follow(SurroundingsBatch(*piece), known)
    monkeypatch.setattr(PredictedPlayer, "free_body", lambda self: None)  # training needs no such help
    player = PredictedPlayers(task.model, cpu).begin(latents, poses)
    around = cell[-1] + template()
    x, y, z = (around - torch.from_numpy(player.origin)).T.numpy()
    expected = known.view(32, 32, 32, 3)[tuple(around[:, axis] % 32 for axis in (0, 2, 1))].detach().numpy()
    assert (expected != 0).any(-1).mean() > 0.25
    np.testing.assert_allclose(player.known[x, z, y].astype(np.float32), expected, atol=0.05)


def test_stage_learns_and_exports(runs, tmp_path):
    settings = {"run.steps": 40, "run.log_seconds": 0, "data.batch": 8, "optimiser.warmup": 5, "data.refresh_ratio": 0}
    result = run_stage("debug_pose", tmp_path, settings, device="cpu", init=str(runs["dense"]))
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert all(0 < result[name] <= 1 for name in ("touched_accuracy", "touched_solid_accuracy", "cross_entropy"))
    assert 0 < result["touched_solid"] < 1
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"autoencoder.safetensors", "config.json", "pose.safetensors", "transformer.safetensors"}
    model = load_pose(tmp_path / "export", (8, 6, 10))
    assert model is not None and model.config.latent_channels == 8
    further = PoseTask(load_config("debug_pose", {}), Ranks("cpu"), str(tmp_path), Profile(torch.device("cpu")))
    for name, tensor in further.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert further.model.training and all(one.requires_grad for one in further.model.parameters())
    (tmp_path / "export" / "pose.safetensors").write_bytes(b"nothing")
    with pytest.raises(StateError, match="damaged"):
        PoseTask(further.config, Ranks("cpu"), str(tmp_path), Profile(torch.device("cpu")))


def test_walks_are_dreamed_anew(runs):
    cpu = torch.device("cpu")
    settings = {"data.dreams": 0.5, "data.edits": 0.0, "data.refresh_ratio": 0.0}
    task = PoseTask(load_config("debug_pose", settings), Ranks("cpu"), str(runs["dense"]), Profile(cpu))
    task.open({})
    task.fill()
    source, rng = task.pool, np.random.default_rng(0)
    assert not task.next_batch(rng).batch.latents.isnan().any()  # as yet of true walks
    taken = [source.poses[slot] for slot in range(source.count)]
    for _ in range(source.length):
        task.after_step()
    dreams = task._dreams
    assert dreams.count == source.count == len(taken)
    starts = []
    for row in range(dreams.count):
        (slot,) = (i for i, poses in enumerate(taken) if np.array_equal(poses, dreams.poses[row]))
        assert torch.equal(dreams.labels[row], source.labels[slot])
        same = (dreams.latents[row] == source.latents[slot]).flatten(1).all(1)
        starts.append(int(same.sum()))
        assert torch.equal(same, ~dreams.generated[row]) and same[: starts[-1]].all()
    assert max(starts) <= source.length // 2
    piece = task.next_batch(rng)
    assert piece.batch.latents.shape[:2] == (2, 4) and piece.fresh[1]  # that row turned to the dreams
    assert torch.isfinite(task.loss(piece, rng))
    task.close()


def test_settings_that_do_not_fit(runs, tmp_path):
    with pytest.raises(ConfigError, match="needs --init"):
        run_stage("debug_pose", tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="at most 24"):
        settings = {"data.frames": 40, "data.episode_frames": 60}
        run_stage("debug_pose", tmp_path, settings, device="cpu", init=str(runs["autoencoder"]))
    with pytest.raises(ConfigError, match=r"data.dreams=0.5: .* has no transformer.safetensors"):
        run_stage("debug_pose", tmp_path, {"data.dreams": 0.5}, device="cpu", init=str(runs["autoencoder"]))
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        run_stage("debug_pose", tmp_path, {"data.contact": 2}, device="cpu", init=str(runs["autoencoder"]))
