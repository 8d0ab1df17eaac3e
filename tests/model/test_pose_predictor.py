"""Reading blocks from latents: which cells are looked at and where, and the file that holds the weights."""

import numpy as np
import pytest
import torch
from decmem_env.model.pose_predictor import (
    FILE,
    LARGEST,
    LAYERS,
    SIDE,
    PoseConfig,
    PosePredictor,
    load_pose,
    save_pose,
    template,
)
from decmem_env.model.weight_files import CheckpointError

from decmem_env.conventions.poses import camera_to_world


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return PosePredictor(PoseConfig()).eval()


def test_cells_lie_where_the_camera_sees_them(predictor):
    rng = np.random.default_rng(0)
    inner = rng.uniform(0, 1, (6, 3))
    angles = np.stack([rng.uniform(-75, 75, 6), rng.uniform(-180, 180, 6)], 1)
    offsets = template()
    view = predictor.view(offsets, torch.from_numpy(inner).float(), torch.from_numpy(angles).float())
    cameras = camera_to_world(np.concatenate([inner, angles], 1))  # +x image left, +y up, +z forward
    centres = offsets.numpy() + 0.5
    for camera, place in zip(cameras, view.place.numpy(), strict=True):
        local = (centres - camera[:3, 3]) @ camera[:3, :3]
        np.testing.assert_allclose(place, local * [-1, 1, 1], atol=2e-5)
    # 35 degrees above the middle is the upper edge; the width is 10 / 6 of the height.
    ahead = view.place[..., 2] > 1
    up, right = view.place[..., 1] / view.place[..., 2], view.place[..., 0] / view.place[..., 2]
    edge = np.tan(np.radians(35))
    np.testing.assert_allclose(view.spot[..., 1][ahead], -up[ahead] / edge, atol=1e-5)
    np.testing.assert_allclose(view.spot[..., 0][ahead], right[ahead] / edge * 0.6, atol=1e-5)


def test_a_frame_is_asked_about_what_is_in_sight_and_what_touches_the_player(predictor):
    inner, angles = torch.tensor([[0.5, 0.0, 0.5]] * 2), torch.tensor([[0.0, 0.0], [0.0, 90.0]])
    south, west = predictor.asked(inner, angles).view(2, SIDE, SIDE)
    middle = SIDE // 2
    around = slice(middle - 1, middle + 2)
    assert south[around, around].all() and west[around, around].all()
    assert south[middle, middle:].all() and not south[middle, : middle - 1].any()  # yaw 0 looks along +z
    assert torch.equal(west, south.flip(1).T)  # 90 looks along -x
    assert 30 < south.sum() < 80


def test_a_map_stays_within_bounds_and_sees_the_frame(predictor):
    offsets = template()[: 4 * LAYERS]
    inner, angles = torch.rand(2, 3), torch.tensor([[0.0, 10.0], [20.0, -100.0]])
    view = predictor.view(offsets, inner, angles)
    known = torch.zeros(2, len(offsets), 3)
    features = predictor.read(torch.randn(2, 64, 6, 10))
    assert features.shape == (2, 48, 12, 20)
    for _ in range(200):
        known = predictor.update(features, view, known)
    assert known.abs().max() <= LARGEST
    other = predictor.update(predictor.read(torch.randn(2, 64, 6, 10)), view, known)
    assert not torch.equal(other, predictor.update(features, view, known))


def test_weights_survive_a_file(predictor, tmp_path):
    save_pose(tmp_path, predictor)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_size < 1_500_000
    loaded = load_pose(tmp_path, (64, 6, 10))
    assert loaded is not None and loaded.config == predictor.config
    latents = torch.randn(1, 64, 6, 10)
    torch.testing.assert_close(loaded.read(latents), predictor.read(latents), atol=2e-2, rtol=2e-2)
    assert load_pose(tmp_path / "elsewhere", (64, 6, 10)) is None


def test_faulty_files_are_named(predictor, tmp_path):
    save_pose(tmp_path, predictor)
    with pytest.raises(CheckpointError, match=r"pose\.safetensors reads latents of shape \(64, 6, 10\)"):
        load_pose(tmp_path, (8, 6, 10))
    (tmp_path / FILE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="decmem train pose"):
        load_pose(tmp_path, (64, 6, 10))
