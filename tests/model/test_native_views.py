"""The choice of views in C against the one in NumPy."""

import numpy as np
import pytest
from decmem_env.model import native_views
from decmem_env.model.changes import changes_near, latest, since, since_change, told_changes
from decmem_env.model.config import tiny
from decmem_env.model.keyframes import any_beside, beside
from decmem_env.model.nearest_views import Views, seen_from, seen_from_naive

needs_compiler = pytest.mark.skipif(native_views.load() is None, reason="no C compiler")


def walks(seed, grid):
    """Views in order of time, and poses to look from; on the grid many distances are equal, and some at a bound."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 160))
    poses = np.concatenate(
        [rng.normal(0.0, 2.0, (n + 12, 3)), rng.normal(0.0, 12.0, (n + 12, 1)), rng.uniform(-400, 800, (n + 12, 1))], 1
    )
    if grid:
        poses = np.round(poses / [1, 1, 1, 10, 10]) * [1, 1, 1, 10, 10]
    hands = rng.random(n) < rng.choice([0.0, 0.02, 0.2])
    changes = np.full((n, 4), np.nan)
    known = hands & (rng.random(n) < rng.choice([1.0, 0.9]))
    changes[known] = rng.integers(-9, 9, (int(known.sum()), 4))
    return Views(poses[:n], hands, rng.random(n) < rng.choice([0.0, 0.5, 1.0]), changes), poses[n:]


@needs_compiler
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("few", [1, 2, 5])
def test_it_chooses_the_same(grid, few):
    config = tiny().with_overrides(
        fusion="union", nearest_views=few, voxel_planes=2, voxel_hands=True, keyframe_blocks=1.0, keyframe_degrees=10.0
    )
    found = {"nothing": 0, "some": 0}
    for seed in range(60):
        views, poses = walks(seed, grid)
        for told in (False, True):
            settings = config.with_overrides(voxel_changes=told)
            for pose in poses:
                wanted, chosen = seen_from_naive(views, pose, settings), seen_from(views, pose, settings)
                assert (wanted is None) == (chosen is None)
                assert wanted is None or wanted.tolist() == chosen.tolist()
                found["nothing" if wanted is None else "some"] += 1
                assert since_change(views, pose) == since(changes_near(views, pose))
                for first in (0, len(views.poses) // 2):
                    wanted = beside(views.poses[first:], pose, config).any()
                    assert any_beside(views.poses, pose, settings, first) == wanted
    assert min(found.values()) > 50


def test_without_a_compiler_numpy_chooses(monkeypatch):
    config = tiny().with_overrides(fusion="union", nearest_views=2, keyframe_blocks=1.0, keyframe_degrees=10.0)
    views, poses = walks(1, True)
    wanted = [(seen_from(views, p, config), since_change(views, p), any_beside(views.poses, p, config)) for p in poses]
    monkeypatch.setattr(native_views, "load", lambda: None)
    for pose, (seen, late, near) in zip(poses, wanted, strict=True):
        again = seen_from(views, pose, config)
        assert (seen is None) == (again is None) and (seen is None or seen.tolist() == again.tolist())
        assert since_change(views, pose) == late and any_beside(views.poses, pose, config) == near


@needs_compiler
def test_it_tells_the_same(monkeypatch):
    rng, cases = np.random.default_rng(0), []
    for count in (0, 1, 5, 30, 200):
        changes = latest(np.concatenate([rng.integers(-12, 12, (count, 3)), rng.integers(-3, 2, (count, 1))], 1) * 1.0)
        for _ in range(20):
            pose = np.array([*rng.normal(0.0, 5.0, 3), rng.uniform(-60, 60), rng.uniform(-180, 180)])
            cases.append((changes, pose, told_changes(changes, pose)))
            cases.append((changes, np.round(pose), told_changes(changes, np.round(pose))))
    monkeypatch.setattr(native_views, "load", lambda: None)
    for changes, pose, told in cases:
        np.testing.assert_array_equal(told, told_changes(changes, pose))
    shares = [np.isnan(told[:, 0]).mean() for *_, told in cases]
    assert min(shares) == 0.0 and max(shares) == 1.0


def test_slices_and_columns_will_do():
    """Arrays need not lie as the library reads them."""
    views, poses = walks(3, False)
    config = tiny().with_overrides(fusion="union", nearest_views=2, keyframe_blocks=1.0, keyframe_degrees=10.0)
    turned = np.asfortranarray(views.poses)
    for pose in poses:
        wide = np.stack([pose, pose], 1)[:, 0]
        assert any_beside(turned, wide, config) == any_beside(views.poses, pose, config)
        assert since_change(views._replace(poses=turned), wide) == since_change(views, pose)
