import numpy as np

from decmem_env.conventions.poses import integrate_kinematic, wrap_degrees
from decmem_env.revisit.follow import follow


class Flat:
    """Players on endless flat ground: dead reckoning is the truth."""

    def __init__(self, n):
        self.poses = np.zeros((n, 5))

    def step(self, actions):
        self.poses = integrate_kinematic(self.poses, actions)
        return self.poses


def test_follow_reaches_every_target():
    rng = np.random.default_rng(0)
    steps = 60
    targets = np.zeros((3, steps, 5))
    targets[..., 0] = np.cumsum(rng.uniform(-0.25, 0.25, (3, steps)), 1)
    targets[..., 2] = np.cumsum(rng.uniform(-0.25, 0.25, (3, steps)), 1)
    targets[..., 3] = rng.uniform(-60, 60, (3, steps))
    targets[..., 4] = rng.uniform(-180, 180, (3, steps))
    actions, poses = follow(Flat(3), targets)
    assert np.abs(poses[..., [0, 2]] - targets[..., [0, 2]]).max() < 1e-3
    assert np.abs(wrap_degrees(poses[..., 3:] - targets[..., 3:])).max() < 1e-3
    assert actions.dtype == np.float32 and actions.shape == (3, steps, 25)
