"""A world, a renderer and models simple enough to know every answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decmem_env.revisit.scripts import Script

HEIGHT, WIDTH = 16, 24


def picture(pose: np.ndarray) -> np.ndarray:
    """A frame that depends on the pose alone (a fixed pattern a pose), so that every truth is known."""
    key = np.round(np.asarray(pose) * 100).astype(np.int64)
    key[4] %= 36000
    rng = np.random.default_rng(np.abs(key))
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


class FakeRenderer:
    device = "cpu"

    def render(self, blocks, world_index, poses, depth=False, block_ids=False):
        rgb = torch.as_tensor(np.stack([picture(pose) for pose in poses]))
        return SimpleNamespace(rgb=rgb, depth=torch.full(rgb.shape[:3], 5.0), block_ids=None)


class FakeAutoencoder:
    frames_per_latent = 1

    def stream(self):
        return SimpleNamespace(encoder=self, encode=self.encode, decode=self.decode)

    def encode(self, frames):
        return frames

    def decode(self, latents):
        return torch.as_tensor(latents).clamp(8, 247)  # a small, known loss


class FakeSession:
    def __init__(self, model, seed, memory):
        self.model, self.seed, self.memory = model, seed, memory
        self.closed = False
        self.stats = {"evicted_frames": 0}

    def observe(self, frames, actions, poses, progress=None):
        assert frames.dtype == np.uint8 and len(frames) == len(actions) == len(poses)
        self.last = frames[-1]

    def fork(self, n):
        children = []
        for i in range(n):
            child = FakeSession(self.model, self.seed + i, self.memory)
            child.last = self.last
            children.append(child)
        return children

    def close(self):
        self.closed = True


class FakeModel:
    """`oracle` answers with the truth, `frozen` repeats the last context frame, `noise` answers with noise."""

    def __init__(self, kind):
        self.kind, self.autoencoder, self.device = kind, FakeAutoencoder(), "cpu"
        self.pool = SimpleNamespace(limit=10_000)
        self.config = SimpleNamespace(frames_per_latent=1, voxel_hands=False)
        self.sha256 = 4 * kind

    def start(self, seed=0, memory="memory", steps=None):
        return FakeSession(self, seed, memory)

    def step(self, sessions, actions, poses):
        frames = []
        for session, pose in zip(sessions, poses[:, 0], strict=True):
            if self.kind == "oracle" and session.memory == "memory":
                frames.append(picture(pose))
            elif self.kind == "frozen":
                frames.append(session.last)
            else:
                frames.append(np.random.default_rng(session.seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        return np.stack(frames)[:, None]


def turn_away(world: int, context: int = 10, away: int = 30, offset: float = 0.0) -> Script:
    """Stand and look ahead, turn by 90 degrees, wait, turn back."""
    yaws = [0.0] * context + [15.0, 30.0, 45.0, 60.0, 75.0] + [90.0] * away + [75.0, 60.0, 45.0, 30.0, 15.0, 0.0, 0.0]
    poses = np.zeros((len(yaws), 5))
    poses[:, 4] = yaws
    poses[:, 0] = 10.0 * world
    poses[context + 5 :, 4] += offset
    return Script("turn_away", world, offset == 0, context, np.zeros((len(yaws), 25), np.float32), poses, world)


@pytest.fixture
def blocks():
    return {seed: torch.zeros(2, 2, 2, dtype=torch.uint8) for seed in range(8)}


@pytest.fixture
def fakes():
    return SimpleNamespace(Model=FakeModel, Renderer=FakeRenderer, turn_away=turn_away)
