import pickle
import subprocess
import sys

import numpy as np
import pytest

from decmem_env.worlds import generate_world
from decmem_env.worlds.blocks import ID, NAMES, PASSABLE
from decmem_env.worlds.terrain import WATER_LEVEL, X, Y, Z


def test_shapes_and_types(worlds):
    world = worlds[0]
    assert world.blocks.shape == (X, Z, Y) and world.blocks.dtype == np.uint8 and world.blocks.flags.c_contiguous
    assert world.biome.shape == (X, Z) and world.biome.max() <= 3
    assert world.blocks.max() < len(NAMES) and world.blocks[..., 0].all()


def test_the_same_in_another_process():
    code = "from decmem_env.worlds import generate_world as g; import zlib; print(zlib.crc32(g(41).blocks.tobytes()))"
    import zlib

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == zlib.crc32(generate_world(41).blocks.tobytes())


def test_seeds_differ(worlds):
    assert (worlds[0].blocks != worlds[1].blocks).mean() > 0.05


def test_spawn_is_dry_open_ground():
    for seed in range(6):
        world = generate_world(seed)
        x, y, z = (int(np.floor(v)) for v in world.spawn[:3])
        assert 64 < x < 192 and 64 < z < 192 and y > WATER_LEVEL - 1
        assert not world.blocks[x - 1 : x + 2, z - 1 : z + 2, y : y + 3].any()
        assert not PASSABLE[world.blocks[x, z, y - 1]]


def test_rich_in_kinds_blocks_and_landmarks():
    many = [generate_world(seed) for seed in range(6)]
    assert {kind for world in many for kind in (mark.kind for mark in world.landmarks)} == {
        "house",
        "tower",
        "pyramid",
        "arch",
        "wall",
        "monument",
    }
    assert all(len(world.landmarks) > 60 for world in many)
    assert len(np.unique(np.concatenate([np.unique(world.blocks) for world in many]))) >= 37
    assert {int(b) for world in many for b in np.unique(world.biome)} == {0, 1, 2, 3}


def test_a_cliff_rings_the_world_and_it_does_not_wrap(worlds):
    for world in worlds:
        ring = np.concatenate([world.top[0], world.top[-1], world.top[:, 0], world.top[:, -1]])
        assert ring.min() >= 55
        # Three blocks a step: not to be walked or jumped up.
        assert np.diff(world.top[:9, 64:192], axis=0).max() <= -3
        assert (world.blocks[0] != world.blocks[-1]).mean() > 0.01


def test_water_fills_lakes_to_their_level():
    world = generate_world(0)
    assert (world.blocks[..., WATER_LEVEL - 1] == ID["water"]).any()
    assert not (world.blocks[..., WATER_LEVEL:] == ID["water"]).any()


def test_negative_seed():
    with pytest.raises(ValueError, match="negative"):
        generate_world(-1)


def test_worlds_survive_pickling():
    world = generate_world(3)
    assert pickle.loads(pickle.dumps(world)).landmarks == world.landmarks
