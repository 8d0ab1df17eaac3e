"""A constructed scene: a wall across the view at z = 10 blocks, sky above it, and a pillar in front."""

import numpy as np
import torch

from decmem_env.conventions.poses import EYE_HEIGHT, camera_to_world, normalised_intrinsics
from decmem_env.revisit.visible import visible_mask

H, W = 24, 40
WALL_Z, WALL_TOP = 10.0, EYE_HEIGHT + 3.0


def depth_of(pose, pillar=None):
    """Distance along each pixel's ray to the wall (y < WALL_TOP), the pillar (x0, x1, z) or the sky."""
    k = normalised_intrinsics(H, W)
    u = ((np.arange(W) + 0.5) / W - 0.5) / k[0, 0]
    v = ((np.arange(H) + 0.5) / H - 0.5) / k[1, 1]
    rays = np.stack([*np.broadcast_arrays(u[None], v[:, None], np.ones((H, W)))], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    to_world = camera_to_world(pose) * np.array([-1.0, -1.0, 1.0, 1.0])
    direction = rays @ to_world[:3, :3].T
    eye = to_world[:3, 3]
    depth = np.full((H, W), np.inf)

    def plane(z, x0, x1, top):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (z - eye[2]) / direction[..., 2]
        point = eye + t[..., None] * direction
        hit = (t > 0) & (point[..., 0] > x0) & (point[..., 0] < x1) & (point[..., 1] < top)
        return np.where(hit, t, np.inf)

    depth = plane(WALL_Z, -1e9, 1e9, WALL_TOP)
    if pillar is not None:
        depth = np.minimum(depth, plane(pillar[2], pillar[0], pillar[1], 1e9))
    return torch.as_tensor(depth, dtype=torch.float32)


def pose(x=0.0, z=0.0, pitch=0.0, yaw=0.0):
    return np.array([x, 0.0, z, pitch, yaw])


def mask(query, contexts, query_pillar=None, context_pillar=None):
    poses = np.stack(contexts)
    depth = torch.stack([depth_of(p, context_pillar) for p in contexts])
    return visible_mask(depth_of(query, query_pillar), query, depth, poses).numpy()


def test_the_same_view_is_all_visible():
    assert mask(pose(), [pose()]).all()


def test_turned_away_shows_nothing():
    assert not mask(pose(), [pose(yaw=180.0)]).any()


def test_a_small_step_keeps_nearly_everything_and_cuts_the_side_that_comes_into_view():
    # Yaw +17 turns right: the right part of the image was outside the context's view.
    got = mask(pose(yaw=17.0), [pose()])
    assert got[:, : W // 2].mean() > 0.97
    assert got[:, -4:].mean() < 0.05
    moved = mask(pose(x=0.7, z=1.3), [pose()])
    assert moved[H // 2 :, 4:-4].mean() > 0.97


def test_hidden_surfaces_do_not_count():
    # In the context a pillar at z = 3 hid part of the wall; it is gone from the query's depth.
    got = mask(pose(), [pose()], context_pillar=(-0.5, 0.5, 3.0))
    hidden = np.isfinite(depth_of(pose(), (-0.5, 0.5, 3.0)).numpy()) & (
        depth_of(pose(), (-0.5, 0.5, 3.0)).numpy() < depth_of(pose()).numpy()
    )
    assert hidden.any() and not got[hidden].any()
    edge = np.zeros((H, W), bool)
    columns = np.flatnonzero(hidden.any(0))
    edge[:, columns.min() - 1 : columns.max() + 2] = True
    assert got[~edge].all()


def test_a_context_that_sees_behind_the_pillar_helps():
    aside = pose(x=2.0)
    both = mask(pose(), [pose(), aside], context_pillar=(-0.5, 0.5, 3.0))
    one = mask(pose(), [pose()], context_pillar=(-0.5, 0.5, 3.0))
    assert both.sum() > one.sum()


def test_apparent_size_within_a_factor_two():
    # The wall is 10 blocks away in the query; from 4.5 blocks away it looked 2.2 times as large.
    got = mask(pose(), [pose(z=5.5)])
    centre = (slice(H // 2 - 2, H // 2 + 2), slice(W // 2 - 2, W // 2 + 2))
    assert not got[centre].any()
    near = mask(pose(), [pose(z=4.5)])  # 5.5 blocks: factor 1.8
    assert near[centre].all()


def test_sky_counts_by_direction():
    sky = ~np.isfinite(depth_of(pose()).numpy())
    assert sky.any()
    # 30 blocks to the side the same directions are sky there, too; the wall seen from there is another part.
    assert mask(pose(), [pose(x=30.0)])[sky].all()
    # A pillar in the context stood where the query sees sky.
    assert not mask(pose(), [pose()], context_pillar=(-50.0, 50.0, 3.0))[sky].any()


def test_far_from_the_origin():
    far = np.array([7.3e5, 0.0, 0.0, 0.0, 0.0])
    assert mask(pose() + far, [pose(x=0.5) + far]).mean() > 0.9
