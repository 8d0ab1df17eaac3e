import imageio.v2 as imageio
import numpy as np
import pytest

from decmem_env import pictures
from decmem_env.report import svg_curves


def frames(value, count=6):
    return np.full((count, 16, 24, 3), value, np.uint8)


def test_sheet_holds_every_frame_unchanged():
    stack = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 24, 3), np.uint8) * 60
    image = pictures.sheet([("a", stack), ("b", stack)], ["1", "2", "3"], "title")
    for value in (0, 60, 120):
        assert (image == value).all(-1).sum() >= 2 * 16 * 24


def test_difference_is_zero_for_equal_frames():
    assert pictures.difference(frames(9), frames(9)).max() == 0
    assert pictures.difference(frames(9), frames(19)).min() == 20


# imageio's reader leaves its pipes to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_video_reads_back(tmp_path):
    video = pictures.side_by_side([("left", frames(40)), ("right", frames(200))], ["x"] * 6, factor=2)
    assert video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    path = pictures.write_video(tmp_path / "v.mp4", video)
    with imageio.get_reader(path) as reader:
        back = np.stack([frame for frame in reader])
    assert back.shape == video.shape
    assert abs(int(back[3, 30, 20, 0]) - 40) < 8 and abs(int(back[3, 30, -20, 0]) - 200) < 8
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    with pytest.raises(ValueError, match="mp4"):
        pictures.write_video(tmp_path / "v.gif", video)


def test_curves_are_svg():
    text = svg_curves({"memory": [{"x": 0, "psnr": 20.0}, {"x": 5, "psnr": 25.0}]}, "frame", "PSNR")
    assert text.startswith("<svg") and "polyline" in text and "with memory" in text
    assert "nothing" in svg_curves({}, "a", "b")
