import numpy as np
import pytest

from decmem_env.conventions.actions import noop
from decmem_env.viewer.history import History, halve
from decmem_env.viewer.hud import compass, size_text
from decmem_env.viewer.minimap import map_radius
from decmem_env.viewer.source import Shot
from decmem_env.viewer.views import Bookmark, nearest_bookmark, psnr


def pose(x=0.0, z=0.0, yaw=0.0):
    return np.array([x, 20.0, z, 0.0, yaw])


def picture(value=0):
    return np.full((4, 6, 3), value, np.uint8)


def test_halving_averages_four_pixels():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[0, 0] = 200
    assert halve(frame).shape == (2, 3, 3)
    assert halve(frame)[0, 0, 0] == 50 and halve(frame)[1].max() == 0


def test_history_grows_beyond_its_first_room_and_survives_the_disk(tmp_path):
    history = History()
    for i in range(600):
        history.append(picture(i % 256), pose(x=float(i)))
    assert len(history) == 600 and history.poses()[599, 0] == 599
    assert history.picture(300)[0, 0, 0] == 300 % 256 and history.picture(600) is None
    history.save(tmp_path)
    again = History()
    again.load(tmp_path)
    np.testing.assert_array_equal(again.poses(), history.poses())
    again.append(picture(), pose(x=600.0))
    assert len(again) == 601 and len(history) == 600
    again.clear()
    assert len(again) == 0 and again.picture(0) is None


def test_a_return_needs_to_have_been_away():
    history = History()
    for x in (0.0, 0.0, 0.0):
        history.append(picture(), pose(x))
    assert history.returned_after() is None  # never left
    for x in (3.0, 6.0, 3.0):
        history.append(picture(), pose(x))
    assert history.returned_after() == 2  # 3 again, and 6 was away
    history.append(picture(), pose(0.0))
    assert history.returned_after() == 4
    history.append(picture(), pose(0.0, yaw=90.0))
    assert history.returned_after() is None  # same place, never seen in this direction


def test_psnr():
    assert psnr(picture(7), picture(7)) == 100.0
    assert psnr(picture(0), picture(255)) == pytest.approx(0.0)
    assert psnr(picture(0), picture(1)) == pytest.approx(48.13, abs=0.01)


def test_nearest_bookmark_weighs_place_and_direction():
    marks = [Bookmark(pose(x=1.0), picture(), 0), Bookmark(pose(yaw=30.0), picture(), 1)]
    assert nearest_bookmark(pose(), marks) == 0
    assert nearest_bookmark(pose(yaw=25.0), marks) == 1


def test_map_radius_fits_the_way_within_limits():
    assert map_radius(np.zeros((0, 5)), pose()) == 6.0
    assert map_radius(np.stack([pose(), pose(x=20.0)]), pose()) == pytest.approx(23.0)
    assert map_radius(np.stack([pose(x=500.0)]), pose()) == 64.0


@pytest.mark.parametrize(("yaw", "name"), [(0, "south"), (90, "west"), (-90, "east"), (180, "north"), (-180, "north")])
def test_compass(yaw, name):
    assert compass(yaw) == name


def test_sizes_for_people():
    assert [size_text(n) for n in (2048, 5 << 20, 3 << 30)] == ["2 KB", "5 MB", "3.0 GB"]


def test_map_puts_west_left_and_north_up():
    import pygame

    from decmem_env.viewer.minimap import draw_minimap
    from decmem_env.viewer.theme import MARK, Theme

    pygame.font.init()
    sheet = pygame.Surface((200, 200))
    shot = Shot(picture(), pose(), noop(), 0)
    draw_minimap(sheet, Theme(1.0), sheet.get_rect(), shot, pose()[None], [pose(x=-4.0, z=-4.0)])
    pixels = pygame.surfarray.array3d(sheet).astype(int)
    x, y = np.argwhere(np.abs(pixels - MARK).max(-1) < 3).mean(0)
    assert x < 90 and y < 90
