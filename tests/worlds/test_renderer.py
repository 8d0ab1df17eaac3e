import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from decmem_env.conventions.poses import camera_to_world, normalised_intrinsics
from decmem_env.worlds import Renderer, native_library, sample_trajectories
from decmem_env.worlds.blocks import COLOURS, ID, NAMES
from decmem_env.worlds.textures import TEXELS, texture_atlas

POSE = np.array([[128.5, 10.0, 128.5, 0.0, -90.0]])
ZERO = np.zeros(1, np.int64)


def one(world):
    return torch.from_numpy(world.blocks)[None]


def some_poses(worlds, count=4):
    walks = sample_trajectories(worlds, 10 * count, np.random.default_rng(0), grid=False, candidates=1)
    return walks.poses[:, ::10].reshape(-1, 5), np.repeat(np.arange(len(worlds)), count)


def assert_agree(a, b):
    assert ((a.rgb.cpu().int() - b.rgb.cpu().int()).abs() <= 1).float().mean() >= 0.999
    assert (a.block_ids.cpu() == b.block_ids.cpu()).float().mean() >= 0.999
    near = torch.isclose(a.depth.cpu(), b.depth.cpu(), atol=1e-3) | (a.depth.cpu() == b.depth.cpu())
    assert near.float().mean() >= 0.999


@pytest.mark.parametrize("size", [(96, 160), (64, 64), (33, 50)])
def test_torch_twin_agrees(worlds, blocks, size):
    if native_library() is None:
        pytest.skip("no C compiler")
    poses, index = some_poses(worlds, 3)
    a, b = (Renderer(*size, backend=name).render(blocks, index, poses, True, True) for name in ("c", "torch"))
    assert_agree(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(96, 160), (64, 64), (352, 640), (33, 50)])
def test_cuda_agrees(worlds, blocks, size):
    poses, index = some_poses(worlds, 4)
    a = Renderer(*size).render(blocks, index, poses, True, True)
    b = Renderer(*size, device="cuda").render(blocks.cuda(), index, poses, True, True)
    assert b.rgb.is_cuda
    assert_agree(a, b)
    # Indices and poses may lie on the device, and without extras the colours are the same.
    again = Renderer(*size, device="cuda").render(
        blocks.cuda(), torch.as_tensor(index).cuda(), torch.as_tensor(poses).cuda()
    )
    assert torch.equal(again.rgb, b.rgb) and again.depth is None


def test_depth_is_the_distance_along_the_ray(flat):
    flat.blocks[132] = ID["brick"]
    height, width = 24, 40
    made = Renderer(height, width).render(one(flat), ZERO, POSE, depth=True, block_ids=True)
    # Rays through the pixel centres, from the camera of the conventions.
    focal = normalised_intrinsics(height, width)
    u = ((np.arange(width) + 0.5) / width - 0.5) / focal[0, 0]
    v = ((np.arange(height) + 0.5) / height - 0.5) / focal[1, 1]
    rays = np.stack(np.broadcast_arrays(-u[None], -v[:, None], 1.0), -1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    camera = camera_to_world(POSE[0])
    direction, eye = rays @ camera[:3, :3].T, camera[:3, 3]
    to_wall = (132 - eye[0]) / direction[..., 0]
    with np.errstate(divide="ignore"):
        to_ground = np.where(direction[..., 1] < 0, (10 - eye[1]) / direction[..., 1], np.inf)
    expected = np.minimum(to_wall, to_ground)
    np.testing.assert_allclose(made.depth[0].numpy(), expected, rtol=1e-4)
    wanted = np.where(to_wall < to_ground, ID["brick"], ID["stone"])
    assert np.array_equal(made.block_ids[0].numpy(), wanted)


def test_sky_is_infinitely_far(flat):
    pose = POSE + [0, 0, 0, -70.0, 0]
    made = Renderer(16, 16).render(one(flat), ZERO, pose, depth=True, block_ids=True)
    assert torch.isinf(made.depth).all() and not made.block_ids.any()
    assert made.rgb[..., 2].float().mean() > made.rgb[..., 0].float().mean()


def test_image_axes(flat):
    """Facing east: north (-z) is left, up is up."""
    flat.blocks[132, :128, 10:20] = ID["red"]
    flat.blocks[132, 128:, 10:20] = ID["blue"]
    ids = Renderer(20, 40).render(one(flat), ZERO, POSE, block_ids=True).block_ids[0]
    assert ids[5, 0] == ID["red"] and ids[5, -1] == ID["blue"] and ids[-1, 20] == ID["stone"]


def test_the_view_does_not_wrap(flat):
    flat.blocks[2] = ID["red"]
    pose = np.array([[253.0, 10.0, 128.5, 0.0, -90.0]])
    ids = Renderer(20, 40).render(one(flat), ZERO, pose, block_ids=True).block_ids
    assert not (ids == ID["red"]).any()


def test_frames_of_a_batch_do_not_depend_on_each_other(worlds, blocks):
    poses, index = some_poses(worlds)
    renderer = Renderer(40, 64)
    together = renderer.render(blocks, index, poses).rgb
    for i in range(len(poses)):
        assert torch.equal(renderer.render(blocks, index[i : i + 1], poses[i : i + 1]).rgb[0], together[i])
    assert renderer.render(blocks, index[:0], poses[:0]).rgb.shape == (0, 40, 64, 3)


def test_threads_do_not_change_a_pixel(worlds, blocks):
    poses, index = some_poses(worlds)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(Renderer(40, 64).render(blocks, index, poses).rgb)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_a_forked_child_renders_too(flat):
    """OpenMP's threads do not survive a fork (gymnasium's AsyncVectorEnv forks)."""
    code = """
import os, signal, numpy as np, torch
from decmem_env.worlds import Renderer, generate_world
world, renderer = generate_world(0), Renderer(40, 64)
torch.set_num_threads(2)
draw = lambda: renderer.render(torch.from_numpy(world.blocks)[None], [0], world.spawn[None]).rgb
before = draw()
child = os.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if torch.equal(draw(), before) else 1)
raise SystemExit(os.waitpid(child, 0)[1])
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


def test_moving_changes_the_picture(worlds, blocks):
    """While a player moves, the previous frame copied scores at most 18 dB on average (measures)."""
    walks = sample_trajectories(worlds, 64, np.random.default_rng(3), grid=True, candidates=1)
    index = np.repeat(np.arange(len(worlds)), 64)
    rgb = Renderer().render(blocks, index, walks.poses.reshape(-1, 5)).rgb.unflatten(0, (len(worlds), 64)).float()
    error = ((rgb[:, 1:] - rgb[:, :-1]) / 255).square().mean((2, 3, 4)).numpy()
    moving = np.abs(np.diff(walks.poses, axis=1)).max(-1) > 1e-6
    assert (-10 * np.log10(error[moving].clip(1e-10))).mean() <= 18.0


def test_textures_are_distinct_and_mips_keep_their_mean():
    atlas = texture_atlas()
    assert atlas.shape == (len(NAMES), 3, TEXELS, 3)
    means = atlas[1:, :, -1].astype(float)
    fine = atlas[1:, :, :256].astype(float).mean(2)
    assert np.abs(means - fine).max() <= 1.0
    top = means[:, 1]
    apart = np.abs(top[:, None] - top[None]).max(-1) + 1000 * np.eye(len(top))
    assert apart.min() >= 5.0
    assert len(COLOURS) == len(NAMES)


def test_edits_show(flat):
    renderer, grid = Renderer(40, 64), one(flat).clone()
    before = renderer.render(grid, ZERO, POSE).rgb
    grid[0, 132, 128, 11] = ID["orange"]
    after = renderer.render(grid, ZERO, POSE).rgb
    assert ((before.int() - after.int()).abs().amax(-1) > 16).sum() >= 40


def test_bad_input_is_named(flat):
    renderer = Renderer(8, 8)
    with pytest.raises(ValueError, match="blocks are"):
        renderer.render(torch.zeros(1, 8, 8, 8, dtype=torch.uint8), ZERO, POSE)
    with pytest.raises(ValueError, match="contiguous"):
        renderer.render(one(flat).transpose(1, 2), ZERO, POSE)
    with pytest.raises(ValueError, match="world_index"):
        renderer.render(one(flat), ZERO + 1, POSE)
    with pytest.raises(ValueError, match="world_index"):
        renderer.render(one(flat), np.zeros(2, np.int64), POSE)
    with pytest.raises(ValueError, match="poses"):
        renderer.render(one(flat), ZERO, POSE[:, :4])
    with pytest.raises(ValueError, match="backend"):
        Renderer(backend="opengl")
    with pytest.raises(ValueError, match="does not run"):
        Renderer(backend="cuda")
    with pytest.raises(ValueError, match="positive"):
        Renderer(height=0)


def test_without_a_compiler_torch_renders_and_says_so(tmp_path):
    """In a fresh process, with no compiler on the path and an empty cache."""
    code = """
import os, warnings, json
os.environ["PATH"] = os.environ["CC"] = ""
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from decmem_env.worlds import Renderer, native_library
    backends = [Renderer(8, 8).backend, Renderer(8, 8).backend]
print(json.dumps([native_library(), backends, sum("compiler" in str(w.message) for w in caught)]))
"""
    environment = {"DECMEM_CACHE": str(tmp_path), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == [None, ["torch", "torch"], 1]


def test_native_library_is_built_once_into_the_cache(tmp_path):
    if native_library() is None:
        pytest.skip("no C compiler")
    code = "from decmem_env.worlds import native_library as n; p = n(); print(p, p.stat().st_mtime_ns)"
    environment = {"DECMEM_CACHE": str(tmp_path), "PATH": __import__("os").environ["PATH"], "HOME": str(tmp_path)}

    def build():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    first, second = build(), build()
    assert first.stdout == second.stdout and str(tmp_path) in first.stdout
    assert len(list(tmp_path.glob("*.so"))) == 1 and not list(tmp_path.glob("build-*"))
