"""The tour of the neighbourhood that a model watches first."""

from dataclasses import replace

import numpy as np
import pytest

from decmem_env.conventions.poses import wrap_degrees
from decmem_env.tour import FRAMES, SHORTEST, plan_tour
from decmem_env.worlds import Simulator, generate_world

SEEDS = (7_000_000, 7_000_003, 7_000_009, 8_000_003)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tour_goes_out_several_ways_and_comes_home(seed):
    world = generate_world(seed)
    start = np.asarray(world.spawn, np.float64)
    actions = plan_tour(world, start, FRAMES)
    assert len(actions) <= FRAMES and not actions[0].any()
    poses = Simulator([world], start[None]).walk(actions[:, None])[:, 0]
    offsets = poses[:, :3] - start[:3]
    away = np.linalg.norm(offsets[:, [0, 2]], axis=1)
    assert away.max() > 8.0 and away[-1] <= 0.5 * 4
    assert abs(float(wrap_degrees(poses[-1, 4] - start[4]))) < 1e-6
    directions = np.degrees(np.arctan2(*offsets[away > 8.0][:, [0, 2]].T))
    ways = {int(np.round(angle / 60.0)) % 6 for angle in directions}
    assert len(ways) >= 3


def test_short_tours_are_cut_and_long_ones_end_when_no_way_is_left():
    world = generate_world(SEEDS[0])
    start = np.asarray(world.spawn, np.float64)
    assert [len(plan_tour(world, start, frames)) for frames in (1, 10, 25, SHORTEST - 1)] == [1, 10, 25, 25]
    assert SHORTEST // 2 < len(plan_tour(world, start, SHORTEST)) <= SHORTEST
    assert len(plan_tour(world, start, 10_000)) < 2_000


def test_walls_all_around_leave_a_look_around():
    world = generate_world(SEEDS[0])
    start = np.asarray(world.spawn, np.float64)
    blocks = world.blocks.copy()
    x, y, z = np.floor(start[:3]).astype(int)
    stone = blocks[x, z, 0]
    for east in (-1, 0, 1):
        for south in (-1, 0, 1):
            if east or south:
                blocks[x + east, z + south, y : y + 4] = stone
    assert len(plan_tour(replace(world, blocks=blocks), start, FRAMES)) == 25
