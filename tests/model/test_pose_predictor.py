"""Reading blocks from latents: which cells are looked at and where, and the file that holds the weights."""

import numpy as np
import pytest
import torch
from decmem_env.model.checkpoint import WEIGHTS
from decmem_env.model.pose_predictor import (
    FILE,
    LARGEST,
    LAYERS,
    NEIGHBOURS,
    SIDE,
    PoseConfig,
    PosePredictor,
    all_columns,
    around,
    bounded,
    load_pose,
    save_pose,
    template,
)
from decmem_env.model.weight_files import CheckpointError

from decmem_env.conventions.poses import EYE_HEIGHT, camera_to_world


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return PosePredictor(PoseConfig()).eval()


def test_cells_lie_where_the_camera_sees_them(predictor):
    rng = np.random.default_rng(0)
    inner = rng.uniform(0, 1, (6, 3))
    angles = np.stack([rng.uniform(-75, 75, 6), rng.uniform(-180, 180, 6)], 1)
    columns = all_columns().expand(6, -1, -1)
    spot, ahead, geometry, _ = predictor.look(
        columns, torch.from_numpy(inner).float(), torch.from_numpy(angles).float()
    )
    assert spot.shape[2] == 2 * LAYERS + 1  # floors and middles in turn, and a ceiling
    floors, spot, ahead = spot[:, :, ::2], spot[:, :, 1::2], ahead[:, :, 1::2]
    far = (ahead > 4).all(-1)
    between = (floors[:, :, :-1] + floors[:, :, 1:]) / 2
    torch.testing.assert_close(between[far], spot[far], atol=0.05, rtol=0.05)
    right, up, depth = (4.0 * geometry[..., 4:7]).unbind(-1)
    where_from = np.linalg.norm(template().numpy() + 0.5 - inner[:, None] - [0, EYE_HEIGHT, 0], axis=-1)
    distance = torch.stack([right, up, depth], -1).norm(dim=-1).flatten(1)
    np.testing.assert_allclose(distance.numpy(), where_from, atol=1e-4)
    cameras = camera_to_world(np.concatenate([inner, angles], 1))  # +x image left, +y up, +z forward
    centres = template().numpy() + 0.5
    edge = np.tan(np.radians(35))  # the upper edge is 35 degrees above the middle; the width is 10 / 6 of the height
    for camera, where, depth in zip(cameras, spot.flatten(1, 2).numpy(), ahead.flatten(1).numpy(), strict=True):
        left, up, forward = ((centres - camera[:3, 3]) @ camera[:3, :3]).T
        np.testing.assert_allclose(depth, forward, atol=2e-5)
        far = forward > 1
        np.testing.assert_allclose(where[far, 0], -left[far] / forward[far] / edge * 0.6, atol=1e-4)
        np.testing.assert_allclose(where[far, 1], -up[far] / forward[far] / edge, atol=1e-4)


def test_a_cell_covers_the_part_of_the_picture_that_its_corners_span(predictor):
    rng = np.random.default_rng(2)
    inner, angles = rng.uniform(0, 1, (6, 3)), np.stack([rng.uniform(-75, 75, 6), rng.uniform(-180, 180, 6)], 1)
    columns = all_columns().expand(6, -1, -1)
    part, covers = predictor.covered(columns, torch.from_numpy(inner).float(), torch.from_numpy(angles).float())
    corners = np.stack(np.meshgrid(*[[0, 1]] * 3), -1).reshape(-1, 3)
    edge = np.tan(np.radians(35))
    cameras = camera_to_world(np.concatenate([inner, angles], 1))
    for camera, found, any_of_it in zip(cameras, part.flatten(1, 2).numpy(), covers.flatten(1).numpy(), strict=True):
        points = template().numpy()[:, None] + corners - camera[:3, 3]
        left, up, forward = np.moveaxis(points @ camera[:3, :3], -1, 0)
        before = (forward > 0.1).all(1)
        spots = np.stack([-left / forward / edge * 0.6, -up / forward / edge], -1)[before].clip(-1, 1)
        np.testing.assert_allclose(found[before, :2], spots.min(1), atol=1e-4)
        np.testing.assert_allclose(found[before, 2:], spots.max(1), atol=1e-4)
        empty = (np.ptp(spots, axis=1) < 1e-6).any(-1)
        assert (any_of_it[before] == ~empty).mean() > 0.999
        assert not any_of_it[(forward <= 0).all(1)].any()


def test_neighbours_turn_with_the_camera():
    columns = torch.tensor([[[2, -3]]]).expand(3, -1, -1)
    found = around(columns, torch.tensor([[0.0, 10.0], [30.0, 85.0], [0.0, -170.0]]))[:, 0] - torch.tensor([2, -3])
    south, west, north, east = [0, 1], [-1, 0], [0, -1], [1, 0]
    assert found[0].tolist() == [[0, 0], south, west, north, east]  # ahead, right, behind, left
    assert found[1].tolist() == [[0, 0], west, north, east, south]
    assert found[2].tolist() == [[0, 0], north, east, south, west]


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
    columns = all_columns()[40:60].expand(2, -1, -1)
    inner, angles = torch.rand(2, 3), torch.tensor([[0.0, 10.0], [20.0, -100.0]])
    known = torch.zeros(2, 20, 1 + NEIGHBOURS, LAYERS, 3)
    everything = torch.ones(2, 20, LAYERS, dtype=torch.bool)
    features = predictor.read(torch.randn(2, 64, 6, 10), inner, angles)
    assert features.shape == (2, predictor.config.fine, 24, 40)
    seen = predictor.sight(features, columns, inner, angles, torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    for _ in range(200):
        known[:, :, 0] = bounded(predictor.update(seen, everything, known))
    assert 0 < known.abs().max() <= LARGEST
    with torch.enable_grad():  # a map at its bounds still learns
        known[:, :, 0] = LARGEST * known[:, :, 0].sign()
        loss = predictor.update(seen.detach(), everything, known).square().sum(-1)
        grads = torch.autograd.grad(loss.sum(), predictor.decide[-1].bias)[0]
    assert (grads != 0).all()
    features = predictor.read(torch.randn(2, 64, 6, 10), inner, angles)
    other = predictor.sight(features, columns, inner, angles, torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    # Columns behind the camera's plane show nothing: they change by what is known only.
    hidden = (predictor.look(columns, inner, angles)[1] <= 0).all(-1)
    assert hidden.any() and not hidden.all()
    assert torch.equal(other[hidden], seen[hidden]) and not torch.isclose(other[~hidden], seen[~hidden]).all(-1).any()


def test_a_map_keeps_which_kind_leads():
    logits = torch.tensor([[8.0, 11.0, -19.0], [0.2, 0.1, -0.3], [40.0, -20.0, -20.0], [0.0, 0.0, 0.0]])
    kept = bounded(logits)
    assert torch.equal(kept.argmax(-1)[:3], logits.argmax(-1)[:3]) and kept.abs().max() <= LARGEST
    torch.testing.assert_close(kept.mean(-1), torch.zeros(4))
    first, second, _ = kept.sort(descending=True).values.unbind(-1)
    torch.testing.assert_close(first - second, torch.tensor([3.0, 0.1, 1.5 * LARGEST, 0.0]))
    torch.testing.assert_close(bounded(kept), kept)


def test_shown_is_what_reaches_into_the_picture(predictor):
    rng = np.random.default_rng(1)
    inner = rng.uniform(0, 1, (4, 3))
    angles = np.stack([rng.uniform(-60, 60, 4), rng.uniform(-180, 180, 4)], 1)
    columns = all_columns().expand(4, -1, -1)
    where = torch.from_numpy(inner).float(), torch.from_numpy(angles).float()
    shown = predictor.shown(columns, *where).flatten(1).numpy()
    spots = np.stack(np.meshgrid(*[np.linspace(0.02, 0.98, 7)] * 3), -1).reshape(-1, 3)
    points = template().numpy()[:, None] + spots
    edge = np.tan(np.radians(35))
    for camera, found in zip(camera_to_world(np.concatenate([inner, angles], 1)), shown, strict=True):
        left, up, forward = np.moveaxis((points - camera[:3, 3]) @ camera[:3, :3], -1, 0)
        wide = edge / 0.6
        high_sides = [(edge * forward + sign * up) / np.hypot(edge, 1) for sign in (-1, 1)]
        sides = [forward, *high_sides, *((wide * forward + sign * left) / np.hypot(wide, 1) for sign in (-1, 1))]
        reach = np.stack(sides, -1)  # of each point into the picture's pyramid from each of its sides, in blocks
        assert found[(reach.min(-1) > 0.25).any(1)].all()
        assert not found[(reach.max(1) < 0.2).any(1)].any()  # a corner is not enough
        assert (found & ~(reach > 0).all(-1).any(1)).mean() < 0.03  # an edge of the pyramid may pass by a cell


def test_what_is_not_shown_stays_known(predictor):
    known = torch.randn(1, 2, 1 + NEIGHBOURS, LAYERS, 3)
    known -= known.mean(-1, keepdim=True)
    known[0, 0, 0], known[0, 1, 0] = torch.tensor([-2.0, 3.0, -1.0]), torch.tensor([0.3, -0.3, 0.0])
    hidden = torch.zeros(1, 2, LAYERS, dtype=torch.bool)
    after = predictor.update(torch.randn(1, 2, predictor.config.hidden), hidden, known)
    torch.testing.assert_close(after[0, 0], known[0, 0, 0])
    assert (after[0, 1] != known[0, 1, 0]).any(-1).all()


def test_weights_survive_a_file(predictor, tmp_path):
    save_pose(tmp_path, predictor)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).stat().st_size < 4_000_000
    loaded = load_pose(tmp_path, (64, 6, 10))
    assert loaded is not None and loaded.config == predictor.config
    frame = torch.randn(1, 64, 6, 10), torch.rand(1, 3), torch.tensor([[15.0, 30.0]])
    torch.testing.assert_close(loaded.read(*frame), predictor.read(*frame), atol=2e-2, rtol=2e-2)
    assert load_pose(tmp_path / "elsewhere", (64, 6, 10)) is None


def test_faulty_files_are_named(predictor, tmp_path):
    save_pose(tmp_path, predictor)
    with pytest.raises(CheckpointError, match=r"pose\.safetensors reads latents of shape \(64, 6, 10\)"):
        load_pose(tmp_path, (8, 6, 10))
    (tmp_path / FILE).write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="decmem train pose"):
        load_pose(tmp_path, (64, 6, 10))


def test_bundled_weights_fit_if_there_are_any():
    file = WEIGHTS / "tiny" / FILE
    model = load_pose(file.parent, (64, 6, 10))
    assert (model is not None) == file.is_file()
    assert model is None or file.stat().st_size < 4_000_000
