import numpy as np
import pytest
import torch
from decmem_env.model.config import debug, tiny
from decmem_env.model.position import frame_matrices, patch_tables, positions, spatial_angles, token_order, transform

from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices


def cameras(seed: int, frames: int):
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(frames, 5)) * (8, 2, 8, 20, 90)
    pair = projective_matrices(poses, normalised_intrinsics(96, 160), np.zeros(5))
    return tuple(torch.from_numpy(m.astype(np.float32)) for m in pair)


def encoded(config, projective, inverse, index, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = len(index)
    q, k, v, o = torch.randn(4, 1, frames, config.tokens, config.heads, config.head_dim, generator=generator)
    where = positions(config, spatial_angles(config), projective[None], inverse[None], index[None])
    return (q, k, v, o), where


def test_the_same_camera_place_and_time_is_the_identity():
    config = tiny()
    projective, inverse = cameras(0, 1)
    (q, k, v, _), where = encoded(config, projective, inverse, torch.tensor([1234]))
    products = transform(q, "query", where, config) * transform(k, "key", where, config)
    torch.testing.assert_close(products.sum(-1), (q * k).sum(-1), rtol=1e-4, atol=1e-4)
    back = transform(transform(v, "value", where, config), "output", where, config)
    torch.testing.assert_close(back, v, rtol=1e-4, atol=1e-4)


def test_moving_the_world_frame_changes_no_score_and_no_value():
    config = debug()
    projective, inverse = cameras(1, 3)
    index = torch.tensor([5, 9, 70])
    angle = 0.7
    moved = torch.tensor(
        [
            [np.cos(angle), 0.0, np.sin(angle), 0.3],
            [0.0, 1.0, 0.0, -0.2],
            [-np.sin(angle), 0.0, np.cos(angle), 0.5],
            [0.0, 0.0, 0.0, 1.0],
        ],
        dtype=torch.float32,
    )
    results = []
    for p, p_inverse in ((projective, inverse), (projective @ torch.linalg.inv(moved), moved @ inverse)):
        (q, k, v, _), where = encoded(config, p, p_inverse, index)
        q, k, v = (transform(t, kind, where, config) for t, kind in ((q, "query"), (k, "key"), (v, "value")))
        scores = torch.einsum("afnhd,agmhd->fgnmh", q, k)
        carried = transform(v.flip(1), "output", where, config)  # values of other cameras seen from these
        results.append((scores, carried))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_time_enters_through_differences_and_leaves_values_alone():
    config = debug()
    projective, inverse = cameras(2, 2)
    found = []
    for offset in (0, 1000):
        (q, k, v, _), where = encoded(config, projective, inverse, torch.tensor([3, 8]) + offset)
        scores = torch.einsum(
            "nhd,mhd->nmh", transform(q, "query", where, config)[0, 1], transform(k, "key", where, config)[0, 0]
        )
        found.append((scores, transform(v, "value", where, config)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    assert torch.equal(found[0][1], found[1][1])
    (q, k, _, _), where = encoded(config, projective, inverse, torch.tensor([3, 50]))
    other = torch.einsum(
        "nhd,mhd->nmh", transform(q, "query", where, config)[0, 1], transform(k, "key", where, config)[0, 0]
    )
    assert (other - found[0][0]).abs().max() > 0.1


@pytest.mark.parametrize("config", [debug(), tiny()], ids=["debug", "tiny"])
def test_matrices_for_inference_equal_the_pointwise_transforms(config):
    projective, inverse = cameras(3, 2)
    index = torch.tensor([2, 4000])
    tensors, where = encoded(config, projective, inverse, index)
    matrices = frame_matrices(config, patch_tables(config, spatial_angles(config)), projective, inverse, index)
    dim = config.head_dim
    for i, (x, kind) in enumerate(zip(tensors, ("query", "key", "value", "output"), strict=True)):
        matrix = matrices.decode if kind == "output" else matrices.encode[:, i]
        turned = torch.einsum("fnhd,fde->fnhe", x[0], matrix)
        sin = -matrices.sin if kind == "output" else matrices.sin
        fast = turned[..., :dim] * matrices.cos + turned[..., dim:] * sin
        torch.testing.assert_close(fast, transform(x, kind, where, config)[0], rtol=1e-5, atol=1e-5)


def test_tokens_of_a_block_are_one_tile():
    order = token_order(tiny()).view(6, 10)
    assert sorted(order.flatten().tolist()) == list(range(60))
    for block in order:
        rows, columns = block // 10, block % 10
        assert rows.max() - rows.min() == 1 and columns.max() - columns.min() == 4
