"""The pose stage: its labels are the true surroundings, it learns, and its export is a checkpoint."""

import numpy as np
import pytest
import torch
from decmem_env.model.pose_predictor import AIR, CELLS, LAYERS, SIDE, SOLID, WATER, load_pose
from decmem_env.trainers import run_stage
from decmem_env.trainers.config import ConfigError
from decmem_env.trainers.curves import read_log
from decmem_env.trainers.data.surroundings import split_poses, surroundings
from decmem_env.trainers.pose import disturbed, surface_weight

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
    change = (disturbed(latents) - latents).square().mean((1, 2, 3, 4)).sqrt()
    assert 0.1 < (change == 0).float().mean() < 0.45 and 0.2 < change.max() < 1.2


def test_stage_learns_and_exports(runs, tmp_path):
    settings = {"run.steps": 40, "run.log_seconds": 0, "data.batch": 8, "optimiser.warmup": 5, "data.refresh_ratio": 0}
    result = run_stage("debug_pose", tmp_path, settings, device="cpu", init=str(runs["dense"]))
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert 0 < result["near_accuracy"] <= 1 and 0 < result["near_solid"] < 1
    names = {path.name for path in (tmp_path / "export").iterdir()}
    assert names == {"autoencoder.safetensors", "config.json", "pose.safetensors", "transformer.safetensors"}
    model = load_pose(tmp_path / "export", (8, 6, 10))
    assert model is not None and model.config.latent_channels == 8


def test_settings_that_do_not_fit(runs, tmp_path):
    with pytest.raises(ConfigError, match="needs --init"):
        run_stage("debug_pose", tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="at most 28"):
        settings = {"data.frames": 40, "data.episode_frames": 60}
        run_stage("debug_pose", tmp_path, settings, device="cpu", init=str(runs["autoencoder"]))
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        run_stage("debug_pose", tmp_path, {"data.contact": 2}, device="cpu", init=str(runs["autoencoder"]))
