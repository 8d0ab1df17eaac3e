"""Models of the debug size with random weights, and walks to feed them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel, flow
from decmem_env.model.autoencoder import TinyAutoencoder
from decmem_env.model.checkpoint import Checkpoint
from decmem_env.model.config import preset
from decmem_env.model.transformer import WorldTransformer
from torch import nn

from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices


def random_checkpoint(base: str = "debug", **changes) -> Checkpoint:
    """A preset with changes; every part that starts at zero in training is random here."""
    config = preset(base).with_overrides(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformer, autoencoder = WorldTransformer(config), TinyAutoencoder(config.autoencoder)
        nn.init.normal_(transformer.head.weight, std=0.1)
        if transformer.voxel_rays is not None:
            nn.init.normal_(transformer.voxel_rays.embed.weight, std=0.3)
        for block in transformer.blocks:
            if block.attention.gate is not None:
                nn.init.normal_(block.attention.gate.weight, std=0.1)
            # Uneven norms, so that a mistake in their order shows.
            nn.init.uniform_(block.attention.norm_q.weight, 0.5, 2.0)
            nn.init.uniform_(block.attention.norm_k.weight, 0.5, 2.0)
    for module in (transformer, autoencoder):
        module.eval().requires_grad_(False)
    return Checkpoint("random", "0" * 64, config, transformer, autoencoder)


def build(memory_budget: int | None = 64 << 20, **changes) -> WorldModel:
    return WorldModel(random_checkpoint(**changes), torch.device("cpu"), torch.float32, memory_budget)


@dataclass(frozen=True)
class Walk:
    frames: np.ndarray
    actions: np.ndarray
    poses: np.ndarray

    def observe(self, session, start: int, stop: int) -> None:
        session.observe(self.frames[start:stop], self.actions[start:stop], self.poses[start:stop])

    def chunk(self, start: int, count: int = 1):
        """Actions and poses of one step of one session."""
        return self.actions[None, start : start + count], self.poses[None, start : start + count]

    def projective(self):
        pair = projective_matrices(self.poses, normalised_intrinsics(96, 160, 70.0), self.poses[0])
        return tuple(torch.from_numpy(m.astype(np.float32))[None] for m in pair)


def make_walk(length: int, seed: int = 0) -> Walk:
    rng = np.random.default_rng(seed)
    actions = np.zeros((length, 25), np.float32)
    actions[:, 11] = rng.integers(0, 2, length)
    actions[:, 16] = rng.integers(-1, 2, length)
    poses = np.cumsum(rng.normal(size=(length, 5)) * (0.4, 0.0, 0.4, 2.0, 12.0), 0)
    poses[:, :3] += (30.0, 12.0, 40.0)
    return Walk(rng.integers(0, 256, (length, 96, 160, 3), np.uint8), actions, poses)


@pytest.fixture(scope="session")
def model() -> WorldModel:
    return WorldModel.from_pretrained("debug", memory_budget=64 << 20, memory_dtype="float32")


@pytest.fixture(scope="session")
def walk() -> Walk:
    return make_walk(40)


@pytest.fixture
def noises(monkeypatch):
    """All noise that sessions draw, in order."""
    drawn = []
    original = flow.session_noise

    def spy(generator, shape):
        drawn.append(original(generator, shape))
        return drawn[-1]

    monkeypatch.setattr(flow, "session_noise", spy)
    return drawn
