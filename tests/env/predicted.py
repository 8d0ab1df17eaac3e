"""A predictor that sees the truth, and a checkpoint with a random one."""

from __future__ import annotations

import numpy as np
import torch
from decmem_env.model import WorldModel
from decmem_env.model.pose_predictor import LAYERS, PoseConfig, PosePredictor, save_pose, template
from decmem_env.trainers.data.surroundings import surroundings

from decmem_env.predicted_player import PredictedPlayers


class TrueSight(PredictedPlayers):
    """Learns the true blocks of what a frame can tell about."""

    def __init__(self, worlds):
        super().__init__(PosePredictor(PoseConfig()), torch.device("cpu"))
        self.worlds = [torch.from_numpy(world.blocks) for world in worlds]

    def observe(self, players, latents, generated):
        for player, blocks in zip(players, self.worlds, strict=True):
            pose = player.pose
            cell = np.floor(pose[:3] + 1e-4).astype(np.int64)
            inner, angles = torch.from_numpy(pose[None, :3] - cell).float(), torch.from_numpy(pose[None, 3:]).float()
            asked = self.predictor.asked(inner, angles)[0].repeat_interleave(LAYERS).numpy()
            logits = np.eye(3, dtype=np.float32)[surroundings(blocks, torch.from_numpy(cell)[None])[0].numpy()]
            player.learn((cell - player.origin + template().numpy())[asked], 6.0 * logits[asked])
            player.free_body()


def save_checkpoint(folder):
    """A `debug` checkpoint with a random pose predictor."""
    torch.manual_seed(1)
    WorldModel.from_pretrained("debug").save_pretrained(folder)
    save_pose(folder, PosePredictor(PoseConfig(latent_channels=8, width=16, fine=8, hidden=16)))
    return str(folder)
