"""Rays through tokens and the faces that they cross, against the renderer and the game's own hand."""

import numpy as np
import pytest
import torch
from decmem_env.model.changes import made_changes
from decmem_env.model.config import tiny
from decmem_env.model.position import token_order
from decmem_env.model.voxel_rays import (
    VoxelRays,
    crossings,
    feature_count,
    hand_cells,
    outlines,
    token_rays,
    views,
)

from decmem_env.conventions.actions import Action
from decmem_env.conventions.poses import EYE_HEIGHT, camera_to_world, look_vector
from decmem_env.worlds import Renderer, generate_world
from decmem_env.worlds.hands import target
from decmem_env.worlds.trajectories import random_start

from .conftest import build, make_walk
from .test_streaming import CONTEXT, STEPS, record_velocities, relative, stream, teacher_forced

PLANES = 5
CONFIG = tiny().with_overrides(voxel_planes=PLANES)
WIDTH = np.radians(CONFIG.vertical_fov) / CONFIG.grid[0]


def standing(count, seed=4):
    """A world and players on its ground that look anywhere."""
    world = generate_world(7_000_003)
    rng = np.random.default_rng(seed)
    poses = np.stack([random_start(world, rng, grid=False) for _ in range(count)])
    poses[:, 3] = rng.uniform(-20.0, 60.0, count)
    return world, poses


def seen_with(poses, cells, kind):
    """Views with one change each."""
    changes = np.concatenate([cells, np.where(np.isnan(cells[:, :1]), np.nan, kind)], 1)
    return torch.from_numpy(views(poses, cells, changes[:, None]))


def test_views_keep_what_the_grid_sees():
    found = views([[10.25, 3.0, -0.25, 30.0, -90.0]])
    seen = [[0.25, EYE_HEIGHT - 1.0, 0.75, np.pi / 6, -np.pi / 2]]
    np.testing.assert_allclose(found[:, :5], seen, rtol=1e-6)
    far = views([[4_000_000.25, 3.0, -0.25, 30.0, -90.0]])  # far out, nothing is lost
    np.testing.assert_array_equal(found, far)


def test_directions_are_the_cameras():
    _, poses = standing(6)
    found = crossings(torch.from_numpy(views(poses)), token_rays(CONFIG)[:, 0], PLANES, WIDTH)[..., :3].numpy()
    axes = camera_to_world(poses)[:, :3, :3] * [-1.0, 1.0, 1.0]
    wanted = np.einsum("fij,nj->fni", axes, token_rays(CONFIG)[:, 0].numpy())
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted, axis=-1, keepdims=True), atol=1e-6)


def test_what_is_drawn_lies_on_a_crossed_face():
    """Every near surface in the middle of a token is one of its crossings, at its place within the block."""
    world, poses = standing(24)
    rows, columns = CONFIG.grid
    blocks = torch.from_numpy(np.asarray(world.blocks, np.uint8))[None]
    drawn = Renderer(rows, columns).render(blocks, torch.zeros(len(poses), dtype=torch.int64), poses, depth=True)
    view = torch.from_numpy(views(poses))
    features = crossings(view, token_rays(CONFIG)[:, 0], PLANES, WIDTH)
    depth = drawn.depth.flatten(1)[:, token_order(CONFIG)]
    faces = features[..., 9:].unflatten(-1, (3, PLANES, 5))
    distance = 3.0 / faces[..., 4] - 3.0
    near = (depth < 4.0) & (depth > 0.3)
    assert near.sum() > 200
    gap, which = (distance.flatten(2) - depth[..., None]).abs().min(-1)
    assert (gap[near] < 0.01).float().mean() > 0.99
    # The phase of that crossing is where the texture is looked up.
    chosen = faces.flatten(2, 3).gather(2, which[..., None, None].expand(-1, -1, 1, 5))[:, :, 0]
    eye = poses[:, None, :3] + [0.0, EYE_HEIGHT, 0.0]
    point = eye + depth[..., None].numpy() * features[..., :3].numpy()
    axis = (which // PLANES).numpy()
    for row, token in np.argwhere(near.numpy())[:300]:
        if gap[row, token] > 0.01:
            continue
        a = axis[row, token]
        inside = np.array([point[row, token, (a + 1) % 3], point[row, token, (a + 2) % 3]])
        found = np.arctan2(*chosen[row, token, :4].reshape(2, 2).numpy())
        turned = (found - 2.0 * np.pi * inside + np.pi) % (2.0 * np.pi) - np.pi
        assert np.abs(turned).max() < 0.1


@pytest.mark.parametrize("breaking", [True, False])
def test_the_hands_cell_is_among_the_candidates(breaking):
    """The tokens that the changed cell covers, found by drawing it, are those of the face that the game's hand met."""
    world, poses = standing(40, seed=9)
    blocks = np.asarray(world.blocks, np.uint8)
    rows, columns = CONFIG.grid
    order = token_order(CONFIG)
    renderer = Renderer(4 * rows, 4 * columns, samples=1)
    seen = 0
    shares = hand_cells(torch.from_numpy(views(poses)), token_rays(CONFIG, 4), PLANES)
    for pose, share in zip(poses, shares, strict=True):
        cell = target(blocks, pose)[0 if breaking else 1]
        if cell is None:
            continue
        # Alone in an empty world, so that nothing hides it.
        alone = torch.zeros(1, *blocks.shape, dtype=torch.uint8)
        alone[0, cell[0], cell[2], cell[1]] = 1
        eye = pose[:3] + np.array([0.0, EYE_HEIGHT, 0.0])
        if (np.floor(eye) == cell).all():
            continue  # the cell in which the eye is: the renderer starts behind it
        shown = renderer.render(alone, torch.zeros(1, dtype=torch.int64), pose[None], block_ids=True).block_ids[0] > 0
        wanted = shown.float().unflatten(0, (rows, 4)).unflatten(2, (columns, 4)).mean((1, 3)).flatten()[order]
        error = (share[:, 0 if breaking else 1] - wanted[:, None]).abs().sum(0)
        assert error.min() < 0.3, (pose, cell)
        seen += 1
    assert seen >= 10


def test_out_of_reach_nothing_is_covered():
    up = torch.from_numpy(views([[0.5, 3.0, 0.5, -75.0, 0.0], [0.5, 3.0, 0.5, 45.0, 30.0]]))
    shares = hand_cells(up, token_rays(CONFIG, 4), 9).unflatten(-1, (3, 9))
    assert (shares[:, :, :, :, 6:] == 0.0).all()  # at most 6 whole coordinates of an axis lie within 5 blocks
    assert (shares[0].amax((0, 1))[1] > 0).sum() == 5  # straight up, faces 0.38 to 4.38 blocks away
    assert shares.min() >= 0.0 and shares.max() <= 1.0


def test_only_hands_fill_the_cells():
    rays = VoxelRays(CONFIG)
    view = torch.from_numpy(views(standing(4)[1]))[None]
    actions = torch.zeros(1, 4, 25)
    actions[0, 1, Action.ATTACK] = 1.0
    actions[0, 2, Action.PLACE] = 1.0
    cells = rays.features(view, actions)[0][0, :, :, 9 + 15 * PLANES :].unflatten(-1, (2, 3 * PLANES))
    assert cells.shape[-1] == 3 * PLANES and rays.embed.in_features == feature_count(PLANES)
    used = cells.abs().sum((1, 3)) > 0
    assert used.tolist() == [[False, False], [True, False], [False, True], [False, False]]
    # A recorded graph computes all frames: the same.
    every = rays._cells(view[0], actions[0][:, [Action.ATTACK, Action.PLACE]])
    torch.testing.assert_close(every, cells.flatten(2), rtol=0.0, atol=0.0)


def met(count, breaking):
    """Poses whose hand meets something, and the cell that it changes there."""
    world, poses = standing(count)
    blocks = np.asarray(world.blocks, np.uint8)
    cells = [target(blocks, pose)[0 if breaking else 1] for pose in poses]
    known = [i for i, cell in enumerate(cells) if cell is not None]
    eyes = np.floor(poses[known, :3] + [0.0, EYE_HEIGHT, 0.0])
    chosen = np.array([cells[i] for i in known], np.float64)
    apart = (eyes != chosen).any(-1)  # the renderer starts behind the cell in which the eye is
    return world, poses[known][apart], chosen[apart]


@pytest.mark.parametrize("breaking", [True, False])
def test_of_the_candidates_only_the_told_cell_counts(breaking):
    _, poses, cells = met(40, breaking)
    number, probes = 0 if breaking else 1, token_rays(CONFIG, 4)
    guessed = hand_cells(torch.from_numpy(views(poses)), probes, PLANES)[:, :, number]
    told = hand_cells(torch.from_numpy(views(poses, cells)), probes, PLANES)[:, :, number]
    faces = (told > 0.0).any(1)
    assert len(poses) >= 10 and (faces.sum(1) == 1).float().mean() > 0.9  # one that covers no probe has none
    assert ((guessed > 0.0).any(1).sum(1) > 1).float().mean() > 0.9
    torch.testing.assert_close(told[(told > 0.0)], guessed[(told > 0.0)], rtol=0.0, atol=0.0)


def test_the_outline_of_a_placed_block_is_where_it_will_be_drawn():
    world, poses, cells = met(40, False)
    blocks = torch.from_numpy(np.asarray(world.blocks, np.uint8))[None]
    rows, columns = CONFIG.grid
    renderer = Renderer(4 * rows, 4 * columns)
    order = token_order(CONFIG)
    found = outlines(seen_with(poses, cells, 1.0), token_rays(CONFIG, 4))
    for pose, cell, lines in zip(poses, cells.astype(int), found, strict=True):
        alone = torch.zeros_like(blocks)
        alone[0, cell[0], cell[2], cell[1]] = 1
        drawn = renderer.render(alone, torch.zeros(1, dtype=torch.int64), pose[None], block_ids=True).block_ids[0] > 0
        wanted = drawn.unflatten(0, (rows, 4)).unflatten(2, (columns, 4)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        assert ((lines > 0.0) != wanted[order]).sum() <= 2, (pose, cell)


def test_the_opening_of_a_hole_is_the_met_face():
    """Of the rays that meet the cell, those by the face that the middle ray meets see into it."""
    _, poses, cells = met(40, True)
    probes = token_rays(CONFIG, 4)
    actions = np.zeros((len(poses), 25), np.float32)
    actions[:, Action.ATTACK] = 1.0
    made = made_changes(actions, poses, cells)
    lines = outlines(torch.from_numpy(views(poses, cells, made[:, None])), probes)
    inside = outlines(seen_with(poses, cells, 1.0), probes) > 0.0
    assert ((lines < 0.0) == inside).all()
    opened = lines < -0.5
    shares = opened.flatten(1).sum(1) / inside.flatten(1).sum(1).clamp_min(1)
    assert (shares > 0.0).float().mean() > 0.9 and (shares < 1.0).any()
    assert not outlines(seen_with(poses, np.full_like(cells, np.nan), 1.0), probes).any()


def test_of_several_changes_the_nearest_hides_the_others():
    _, poses, cells = met(24, False)
    ahead = cells + np.round(2.0 * look_vector(poses))  # behind the first, seen from the eye
    kinds = np.full((len(cells), 1), 1.0), np.full((len(cells), 1), -2.0)
    both = np.stack([np.append(ahead, kinds[0], 1), np.append(cells, kinds[1], 1)], 1)
    probes = token_rays(CONFIG, 4)
    alone = [outlines(torch.from_numpy(views(poses, None, both[:, k : k + 1])), probes) for k in (0, 1)]
    found = outlines(torch.from_numpy(views(poses, None, both)), probes)
    torch.testing.assert_close(found, torch.where(alone[1] != 0.0, alone[1], alone[0]))
    assert ((found > 0.0).flatten(1).any(1) & (found < 0.0).flatten(1).any(1)).any()


@torch.no_grad()
def test_told_cells_reach_the_model_only_where_it_can_be_told():
    _, poses, cells = met(8, False)
    actions = torch.zeros(1, len(poses), 25)
    actions[0, :, Action.PLACE] = 1.0
    plain, told = (seen_with(poses, where, 1.0)[None] for where in (np.full_like(cells, np.nan), cells))
    deaf, hearing = VoxelRays(CONFIG), VoxelRays(CONFIG.with_overrides(voxel_hands=True))
    hearing.load_state_dict(deaf.state_dict(), strict=False)
    for one in (deaf, hearing):
        torch.nn.init.normal_(one.embed.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(hearing.outline.weight, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(deaf(told, actions), deaf(plain, actions), rtol=0.0, atol=0.0)
    torch.testing.assert_close(hearing(plain, actions), deaf(plain, actions), rtol=0.0, atol=0.0)
    assert relative(hearing(told, actions), deaf(plain, actions)) > 0.01
    later = hearing(told, 0.0 * actions)  # no hand is at work, but the change is there
    assert relative(later, deaf(plain, 0.0 * actions)) > 0.01


@torch.no_grad()
def test_holes_are_emphasised_in_sessions_alone():
    _, poses, cells = met(8, True)
    plain = VoxelRays(CONFIG.with_overrides(voxel_hands=True)).eval()
    strong = VoxelRays(CONFIG.with_overrides(voxel_hands=True, hole_emphasis=3.0)).eval()
    torch.nn.init.normal_(plain.outline.weight)
    strong.load_state_dict(plain.state_dict())
    still = torch.zeros(1, len(poses), 25)
    hole, block = (seen_with(poses, cells, kind)[None] for kind in (-2.0, 1.0))
    torch.testing.assert_close(strong(hole, still), 3.0 * plain(hole, still))
    torch.testing.assert_close(strong(block, still), plain(block, still))
    torch.testing.assert_close(strong.train()(hole, still), plain(hole, still))
    with pytest.raises(ValueError, match="hole_emphasis"):
        tiny().with_overrides(hole_emphasis=0.0)


def test_a_step_hears_of_cells():
    walk = make_walk(CONTEXT + 2)
    walk.actions[CONTEXT, Action.PLACE] = 1.0
    eye = walk.poses[CONTEXT, :3] + [0.0, EYE_HEIGHT, 0.0]
    axes = camera_to_world(walk.poses[CONTEXT])[:3, :3] * [-1.0, 1.0, 1.0]
    cell = np.floor(eye + 2.0 * axes[:, 2])
    for hands in (False, True):
        model = build(fusion="union", voxel_planes=4, voxel_hands=hands)
        if hands:
            torch.nn.init.normal_(model.transformer.voxel_rays.outline.weight)
        frames = []
        for given in (None, cell[None, None]):
            session = model.start(1)
            walk.observe(session, 0, CONTEXT)
            frames.append(model.step([session], *walk.chunk(CONTEXT), cells=given))
            assert np.isnan(session.pending.cells).all() == (given is None or not hands)
            again = model.restore(session.snapshot())
            np.testing.assert_array_equal(again.pending.cells, session.pending.cells)
        assert (frames[0] != frames[1]).any() == hands
    with pytest.raises(ValueError, match="cells"):
        model.step([session], *walk.chunk(CONTEXT + 1), cells=np.zeros((1, 3)))


def test_streaming_equals_one_pass(noises, monkeypatch):
    """Observed and generated frames, with hands among the actions."""
    model = build(fusion="union", window=4, voxel_planes=2, top_k=6 * (CONTEXT + STEPS))
    walk = make_walk(CONTEXT + STEPS)
    walk.actions[[3, CONTEXT + 2], Action.PLACE] = 1.0
    walk.actions[[5, CONTEXT + 3], Action.ATTACK] = 1.0
    velocities = record_velocities(monkeypatch, model)
    clean = stream(model, walk, model.start(1))
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    view = torch.from_numpy(views(walk.poses))[None]
    ones = torch.ones(1, CONTEXT + STEPS)
    wanted = teacher_forced(model, walk, clean, noisy, ones, view=view)
    assert relative(torch.cat(velocities[-STEPS:], 1), wanted[:, CONTEXT:]) < 1e-4
    moved = teacher_forced(model, walk, clean, noisy, ones, view=view + torch.tensor([0.3, *[0.0] * 7]))
    assert relative(moved[:, CONTEXT:], wanted[:, CONTEXT:]) > 1e-3  # the place within the block matters
    with pytest.raises(ValueError, match="view"):
        teacher_forced(model, walk, clean, noisy, ones)


def test_not_where_a_latent_holds_several_frames():
    with pytest.raises(ValueError, match="voxel_planes"):
        build(base="wan-debug", voxel_planes=2)
    with pytest.raises(ValueError, match="voxel_planes"):
        tiny().with_overrides(voxel_planes=-1)
    with pytest.raises(ValueError, match="voxel_hands"):
        tiny().with_overrides(voxel_hands=True)
