import numpy as np
import pytest
import torch

from decmem_env.conventions.actions import Action, noop
from decmem_env.worlds import generate_world
from decmem_env.worlds.blocks import ID
from decmem_env.worlds.terrain import World


@pytest.fixture(scope="session")
def worlds():
    return [generate_world(seed) for seed in (7_000_000, 7_000_001)]


@pytest.fixture(scope="session")
def blocks(worlds):
    return torch.from_numpy(np.stack([world.blocks for world in worlds]))


@pytest.fixture
def flat():
    """A plain of stone, its surface at y = 10, with the spawn in the middle facing east."""
    grid = np.zeros((256, 256, 64), np.uint8)
    grid[:, :, :10] = ID["stone"]
    spawn = np.array([128.5, 10.0, 128.5, 0.0, -90.0])
    return World(0, grid, spawn, [], np.zeros((256, 256), np.uint8), np.full((256, 256), 10))


@pytest.fixture(scope="session")
def act():
    def build(count=1, **entries):
        """The same action for `count` players, entries by their names."""
        action = noop()
        for name, value in entries.items():
            action[Action[name.upper()]] = value
        return np.repeat(action[None], count, 0)

    return build
