import numpy as np
import pytest

from decmem_env.conventions.actions import Action, discrete_to_vector
from decmem_env.conventions.poses import MAX_PITCH, WALK_SPEED, integrate_kinematic
from decmem_env.worlds import Simulator, generate_world, native_player, step_all
from decmem_env.worlds import simulator as simulator_module
from decmem_env.worlds.blocks import AIR, ID, PLACED
from decmem_env.worlds.hands import target


def run(simulator, actions):
    return np.stack([simulator.step(action) for action in actions])


def test_open_ground_follows_the_kinematic_model(flat, act):
    simulator = Simulator([flat])
    pose = flat.spawn.copy()
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = act(forward=rng.random(), right=rng.random(), camera_yaw=rng.normal(), camera_pitch=rng.normal())
        pose = integrate_kinematic(pose, action[0])
        np.testing.assert_allclose(simulator.step(action)[0], pose, atol=1e-9)


def test_turns_before_walking_and_walks_east_at_minus_90(flat, act):
    pose = Simulator([flat]).step(act(forward=1, camera_yaw=-6))[0]
    np.testing.assert_allclose(pose, [128.5, 10, 128.5 - WALK_SPEED, 0, -180], atol=1e-9)


def test_pitch_is_clamped_and_yaw_wraps(flat, act):
    simulator = Simulator([flat])
    run(simulator, [act(camera_pitch=1, camera_yaw=1)] * 24)
    np.testing.assert_allclose(simulator.poses[0, 3:], [MAX_PITCH, -90.0], atol=1e-9)


def test_half_a_key_walks_half_as_far(flat, act):
    assert Simulator([flat]).step(act(forward=0.5))[0, 0] == pytest.approx(128.5 + 0.5 * WALK_SPEED)


def test_wall_of_two_stops_and_can_be_slid_along(flat, act):
    flat.blocks[132, :, 10:12] = ID["brick"]
    simulator = Simulator([flat])
    path = run(simulator, [act(forward=1)] * 20)
    assert 131.2 < path[-1, 0, 0] <= 131.7 and (path[:, 0, 1] == 10.0).all()
    slid = simulator.step(act(forward=1, right=1))[0]
    assert slid[2] > 128.6 and slid[0] == path[-1, 0, 0]


def test_block_of_one_is_stepped_onto(flat, act):
    flat.blocks[132:, :, 10] = ID["brick"]
    path = run(Simulator([flat]), [act(forward=1)] * 20)[:, 0]
    np.testing.assert_allclose(np.diff(path[:, 0]), WALK_SPEED, atol=1e-9)
    assert path[-1, 1] == 11.0 and set(path[:, 1]) == {10.0, 11.0}


def test_no_step_up_under_a_low_ceiling(flat, act):
    flat.blocks[132:, :, 10] = ID["brick"]
    flat.blocks[131:, :, 12] = ID["brick"]
    path = run(Simulator([flat]), [act(forward=1)] * 20)[:, 0]
    assert path[-1, 0] < 131.8 and path[-1, 1] == 10.0


def test_jump_clears_one_block_and_lands(flat, act):
    simulator = Simulator([flat])
    heights = run(simulator, [act(jump=1)] + [act()] * 12)[:, 0, 1]
    assert 11.0 < heights.max() < 12.0 and heights[-1] == 10.0
    assert heights[0] > 10.5 and np.argmax(heights) >= 2


def test_ceiling_stops_a_jump(flat, act):
    flat.blocks[:, :, 12] = ID["brick"]
    heights = run(Simulator([flat]), [act(jump=1)] + [act()] * 8)[:, 0, 1]
    assert 10.0 < heights.max() <= 10.2 and heights[-1] == 10.0


def test_falls_to_the_ground_without_passing_through_it(flat, act):
    flat.blocks[:, :, 9] = ID["stone"]
    flat.blocks[:, :, :9] = AIR  # a floor one block thick
    simulator = Simulator([flat])
    simulator.teleport(0, [128.5, 50.0, 128.5, 0, 0])
    heights = run(simulator, [act()] * 60)[:, 0, 1]
    assert (np.diff(heights) <= 0).all() and heights[-1] == 10.0


def test_water_slows(flat, act):
    flat.blocks[:, :, 10:12] = ID["water"]
    pose = Simulator([flat]).step(act(forward=1))[0]
    assert pose[0] == pytest.approx(128.5 + 0.5 * WALK_SPEED)


def test_the_sides_of_the_world_hold(flat, act):
    simulator = Simulator([flat])
    simulator.teleport(0, [254.0, 10, 128.5, 0, -90])
    assert run(simulator, [act(forward=1)] * 20)[-1, 0, 0] < 256 - 0.3


def test_never_inside_a_block():
    world = generate_world(7)
    simulator = Simulator([world] * 16)
    rng = np.random.default_rng(1)
    for _ in range(80):
        actions = np.zeros((16, 25), np.float32)
        actions[:, 11] = rng.random(16) < 0.9
        actions[:, 14] = rng.random(16) < 0.3
        actions[:, 16] = rng.normal(0, 1, 16)
        actions[:, 17] = rng.random(16) < 0.2
        poses = simulator.step(actions)
        assert not simulator._grids.hits(*poses[:, :3].T).any()


def test_break_then_place_at_the_same_face(flat, act):
    flat.blocks[131, 128, 10:13] = ID["brick"]
    simulator = Simulator([flat])
    simulator.step(act(attack=1))
    assert simulator.blocks[0, 131, 128, 11] == AIR and simulator.edits == [(0, 131, 11, 128, AIR)]
    simulator.step(act(camera_pitch=1, place=1))  # onto the block below the gap: 30 degrees would miss it
    made = simulator.edits[-1]
    assert made.block == PLACED and simulator.blocks[0, made.x, made.z, made.y] == PLACED
    assert flat.blocks[131, 128, 11] == ID["brick"]  # the world as generated stays as it was


def test_hand_reaches_five_blocks(flat, act):
    flat.blocks[133, 128, 10:13] = ID["brick"]  # its face is 4.5 blocks away
    flat.blocks[128, 134, 10:13] = ID["brick"]  # 5.5
    assert target(flat.blocks, flat.spawn) == ((133, 11, 128), (132, 11, 128))
    assert target(flat.blocks, flat.spawn + [0, 0, 0, 0, 90.0]) == (None, None)


def test_placing_into_oneself_or_thin_air_does_nothing(flat, act):
    simulator = Simulator([flat])
    simulator.step(act(place=1))  # looks at the sky
    simulator.step(act(camera_pitch=5, place=1))  # looks at the ground at its own feet
    before = len(simulator.edits)
    simulator.teleport(0, [128.5, 10, 128.5, 90.0, 0])
    simulator.step(act(place=1))  # straight down
    assert before <= 1 and len(simulator.edits) == before
    assert not simulator._grids.hits(*simulator.poses[:, :3].T).any()


def test_bottom_of_the_world_cannot_be_broken(flat, act):
    flat.blocks[:, :, 1:10] = AIR
    simulator = Simulator([flat])
    simulator.teleport(0, [128.5, 1.0, 128.5, 75.0, 0.0])
    simulator.step(act(attack=1))
    assert not simulator.edits and simulator.blocks[..., 0].all()


def test_players_have_their_own_worlds(flat, act):
    flat.blocks[131, 128, 10:13] = ID["brick"]
    simulator = Simulator([flat, flat])
    actions = np.concatenate([act(attack=1), act()])
    simulator.step(actions)
    assert simulator.blocks[0, 131, 128, 11] == AIR and simulator.blocks[1, 131, 128, 11] == ID["brick"]


def test_players_together_move_as_alone(worlds, act):
    rng = np.random.default_rng(2)
    actions = np.zeros((50, 2, 25), np.float32)
    actions[..., 11], actions[..., 16] = 1.0, rng.normal(0, 1, (50, 2))
    together = run(Simulator(worlds), actions)
    for i, world in enumerate(worlds):
        np.testing.assert_array_equal(run(Simulator([world]), actions[:, i : i + 1])[:, 0], together[:, i])
    index = np.array([1, 0, 1])
    shared = Simulator.shared(worlds, index, np.stack([worlds[i].spawn for i in index]))
    np.testing.assert_array_equal(run(shared, actions[:, index]), together[:, index])


def test_snapshot_and_restore(flat, act):
    flat.blocks[131, 128, 10:13] = ID["brick"]
    simulator = Simulator([flat])
    run(simulator, [act(jump=1)])
    state = simulator.snapshot()
    first = run(simulator, [act(attack=1), act(forward=1), act(forward=1)])
    edits, blocks = list(simulator.edits), simulator.blocks.copy()
    simulator.restore(state)
    assert simulator.edits == [] and simulator.blocks[0, 131, 128, 11] == ID["brick"]
    np.testing.assert_array_equal(run(simulator, [act(attack=1), act(forward=1), act(forward=1)]), first)
    assert simulator.edits == edits and np.array_equal(simulator.blocks, blocks)
    with pytest.raises(ValueError, match="players"):
        Simulator([flat, flat]).restore(state)


def test_bad_input_is_named(flat, act):
    simulator = Simulator([flat])
    with pytest.raises(ValueError, match="actions have shape"):
        simulator.step(act(2))
    with pytest.raises(ValueError, match="NaN"):
        simulator.step(act(forward=np.nan))
    with pytest.raises(ValueError, match="pose"):
        simulator.teleport(0, [np.nan] * 5)
    with pytest.raises(ValueError, match="no worlds"):
        Simulator([])
    with pytest.raises(ValueError, match="share"):
        flat.blocks[131, 128, 10:13] = ID["brick"]
        Simulator.shared([flat], [0], flat.spawn[None]).step(act(attack=1))


@pytest.mark.skipif(native_player.load() is None, reason="no C compiler")
def test_native_movement_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(3)
    worlds = [generate_world(seed) for seed in (7_000_001, 7_000_002)]
    index = np.arange(400) % 2
    starts = np.stack([worlds[i].spawn for i in index])
    starts[:, 0] = rng.uniform(-2, 258, len(index))  # also beyond the sides, inside hills, in and under water
    starts[:, 1] = rng.uniform(0, 60, len(index))
    starts[:, 2] = rng.uniform(-2, 258, len(index))
    actions = np.zeros((60, len(index), 25), np.float32)
    moves = [Action.FORWARD, Action.BACK, Action.LEFT, Action.RIGHT, Action.JUMP]
    actions[..., moves] = rng.random((60, len(index), len(moves))) < 0.5
    actions[..., Action.FORWARD] *= rng.random((60, len(index)))
    actions[..., Action.CAMERA_YAW] = rng.uniform(-1, 1, (60, len(index)))
    paths = []
    for library in (native_player.load, lambda: None):
        monkeypatch.setattr(simulator_module, "load", library)
        players = Simulator.shared(worlds, index, starts)
        paths.append(np.stack([np.concatenate([players.step(a), players._rise[:, None]], 1) for a in actions]))
    assert np.array_equal(*paths)
    assert (np.abs(np.diff(paths[0][..., :3], axis=0)) > 0).any(0).mean() > 0.3


def test_players_step_together_as_alone():
    worlds = [generate_world(seed) for seed in (7_000_001, 7_000_002, 7_000_001)]
    together, alone = ([Simulator([world]) for world in worlds] for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = np.stack([discrete_to_vector(int(i)) for i in rng.integers(12, size=3)])
        poses = step_all(together, actions)
        assert np.array_equal(poses, np.concatenate([one.step(a[None]) for one, a in zip(alone, actions, strict=True)]))
    assert [one.edits for one in together] == [one.edits for one in alone] and any(one.edits for one in alone)
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.blocks, other.blocks)
    with pytest.raises(ValueError, match=r"expected \[3, 25\]"):
        step_all(together, actions[:2])


def test_a_walk_is_its_steps(act):
    world = generate_world(7_000_003)
    plan = np.stack([act(forward=1), act(jump=1, forward=1), act(attack=1), act(camera_yaw=2.0), act(place=1)] * 6)
    alone, together = Simulator([world]), Simulator([world])
    poses = run(alone, plan)
    np.testing.assert_array_equal(together.walk(plan), poses)
    assert together.edits == alone.edits and (together.poses == alone.poses).all()
    with pytest.raises(ValueError, match="expected \\[T, 1, 25\\]"):
        together.walk(plan[:, 0])
