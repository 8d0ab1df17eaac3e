"""Environments small enough for tests: random weights, short contexts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import decmem_env  # noqa: F401  (registers the ids)

DREAM, TRUE = "DecMem-Minecraft-v0", "DecMem-Voxel-v0"
SMALL: dict[str, dict[str, Any]] = {
    DREAM: {"checkpoint": "debug", "device": "cpu", "context_frames": 3},
    TRUE: {"device": "cpu", "samples": 1, "context_frames": 3},
}


@pytest.fixture(params=[DREAM, TRUE])
def env_id(request):
    return request.param


@pytest.fixture
def make(env_id):
    """Factory of single environments of either world."""
    made = []

    def build(name: str = env_id, **kwargs: Any):
        env = gym.make(name, **{**SMALL[name], **kwargs})
        made.append(env)
        return env

    yield build
    for env in made:
        env.close()


@pytest.fixture
def make_vec(env_id):
    """Factory of vector environments of either world."""
    made = []

    def build(count: int, name: str = env_id, **kwargs: Any):
        env = gym.make_vec(name, num_envs=count, **{**SMALL[name], **kwargs})
        made.append(env)
        return env

    yield build
    for env in made:
        env.close()
