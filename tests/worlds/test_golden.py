"""The world is frozen within one `worlds.VERSION`: weights are trained on these blocks and pixels.

If a test here fails and the change is meant: raise `worlds.VERSION`, run this file as a script to print and write the
new values, and make all results again.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from decmem_env.worlds import VERSION, Renderer, Simulator, generate_world
from decmem_env.worlds.textures import texture_atlas

BLOCKS = {
    0: "8cf7285a2903cddcc4b19a487a76f0967fa8e2c991a90758b6749af863d88245",
    8_000_000: "4be7431424031673463d0cf927e80ad67a4f5743921e9a74e2539195b1beaa22",
}
ATLAS = "5a5945fb80f6f646f5195e4f798cad81290d5584971c227540306ddd68fc0448"
END = [173.3384390582064, 23.0, 94.117095810075, 0.0, -90.0]
FRAMES = Path(__file__).with_name("golden_frames.npz")
POSES = np.array([[0.5, 0.0, 0.5, pitch, yaw] for pitch, yaw in ((0, 0), (15, 75), (-30, 150), (45, 240), (0, 303.5))])


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def frames(backend=None):
    """A few small frames around the spawns of two worlds, with block ids."""
    worlds = [generate_world(seed) for seed in BLOCKS]
    blocks = torch.from_numpy(np.stack([world.blocks for world in worlds]))
    poses = np.concatenate([POSES + [*(np.floor(world.spawn[:3])), 0, 0] for world in worlds])
    index = np.repeat([0, 1], len(POSES))
    made = Renderer(40, 64, backend=backend).render(blocks, index, poses, block_ids=True)
    return made.rgb.numpy(), made.block_ids.numpy()


def test_version():
    assert VERSION == 1


@pytest.mark.parametrize("seed", list(BLOCKS))
def test_blocks(seed):
    assert digest(generate_world(seed).blocks) == BLOCKS[seed]


def test_textures():
    assert digest(texture_atlas()) == ATLAS


@pytest.mark.parametrize("backend", [None, "torch"])
def test_frames(backend):
    rgb, ids = frames(backend)
    with np.load(FRAMES) as golden:
        near = np.abs(rgb.astype(int) - golden["rgb"]) <= 1
        assert near.mean() >= 0.999 and (ids == golden["ids"]).mean() >= 0.999


def test_physics():
    """A walk with turns and jumps ends where it always did."""
    simulator = Simulator([generate_world(0)])
    rng = np.random.default_rng(0)
    for tick in range(120):
        action = np.zeros((1, 25), np.float32)
        action[0, 11] = 1.0
        action[0, 16] = rng.integers(-2, 3)
        action[0, 17] = tick % 20 == 10
        simulator.step(action)
    np.testing.assert_allclose(simulator.poses[0], END, atol=1e-6)


def main():
    """Print the hashes of today's world and write its frames."""
    print({seed: digest(generate_world(seed).blocks) for seed in BLOCKS}, digest(texture_atlas()))
    rgb, ids = frames()
    np.savez_compressed(FRAMES, rgb=rgb, ids=ids)


if __name__ == "__main__":
    main()
