import numpy as np
import pytest

from decmem_env.conventions.actions import Action, parse_action_string
from decmem_env.conventions.clips import Clip, raw_to_vectors, read_clip, vectors_to_raw, write_clip


def make_clip(text="N W*3 A R L U J SPACE P B", size=(48, 64)):
    actions = parse_action_string(text)
    count = len(actions)
    y, x = np.mgrid[: size[0], : size[1]]
    frames = np.stack([np.stack([(x * 3 + t * 9) % 256, y * 4, np.full_like(x, 90)], -1) for t in range(count)])
    poses = np.cumsum(np.full((count, 5), 0.1), 0) + [100.0, 30.0, 80.0, 0.0, 0.0]
    return Clip(frames.astype(np.uint8), actions, poses, 10.0)


def test_a_clip_survives_writing(tmp_path):
    clip = make_clip()
    write_clip(tmp_path / "a.mp4", clip)
    back = read_clip(tmp_path / "a.mp4")
    assert back.fps == 10.0
    assert np.array_equal(back.actions, clip.actions)
    assert np.array_equal(back.poses, clip.poses)
    assert back.frames.shape == clip.frames.shape
    error = np.mean((back.frames.astype(float) - clip.frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 32
    assert back.frames.flags.writeable
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.npz"]


def test_the_npz_is_what_worldmem_reads(tmp_path):
    write_clip(tmp_path / "a.mp4", make_clip("N W S L R U J P"))
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive.files) == ["actions", "poses"]
        raw = archive["actions"]
    assert raw.dtype == np.int32 and raw.shape == (8, 8)
    assert raw[:, 0].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert raw[:, 4].tolist() == [12, 12, 12, 11, 13, 12, 12, 12]
    assert raw[:, 3].tolist() == [12, 12, 12, 12, 12, 11, 13, 12]
    assert raw[7, 5] in (1, 6)


def test_free_angles_and_fractions_survive(tmp_path):
    clip = make_clip("N W*4")
    clip.actions[1, Action.CAMERA_YAW] = 7.3 / 15.0
    clip.actions[2, Action.CAMERA_PITCH] = 2.0
    write_clip(tmp_path / "angles.mp4", clip)
    with np.load(tmp_path / "angles.npz") as archive:
        assert archive["actions"].shape == (5, 8)
        assert archive["camera_degrees"][1].tolist() == pytest.approx([0.0, 7.3])
    assert np.allclose(read_clip(tmp_path / "angles.mp4").actions, clip.actions, atol=1e-6)
    clip.actions[3, Action.FORWARD] = 0.5
    write_clip(tmp_path / "speed.mp4", clip)
    assert np.array_equal(read_clip(tmp_path / "speed.mp4").actions, clip.actions)


def test_raw_actions_follow_worldmem():
    raw = np.zeros((6, 8), np.int32)
    raw[:, 3:5] = 12
    raw[0, 0], raw[1, 1], raw[2, 3], raw[3, 4], raw[4, 5], raw[5, 7] = 1, 2, 11, 13, 1, 1
    raw[0, 2], raw[1, 5] = 1, 3
    vectors = raw_to_vectors(raw)
    wanted = [{11: 1, 17: 1}, {14: 1, 21: 1}, {15: -1}, {16: 1}, {24: 1}, {2: 1}]
    assert [{int(i): float(row[i]) for i in np.flatnonzero(row)} for row in vectors] == wanted
    assert not raw_to_vectors(raw, strict=True)[:, [17, 21]].any()


def test_unknown_camera_bins_are_refused():
    raw = np.full((3, 8), 0)
    raw[:, 3:5] = 12
    raw[2, 4] = 15
    with pytest.raises(ValueError, match="raw action 2 has yaw bin 15"):
        raw_to_vectors(raw)
    assert raw_to_vectors(raw, np.array([[0, 0], [0, 0], [0, 45.0]]))[2, Action.CAMERA_YAW] == 3.0


def test_keys_that_minedojo_lacks_are_not_raw():
    actions = parse_action_string("W P")
    assert vectors_to_raw(actions) is not None
    actions[1, Action.ATTACK] = 1.0  # place and break at once: one MineDojo slot
    assert vectors_to_raw(actions) is None


def test_old_clips_lack_the_first_pose_and_corrupt_its_height(tmp_path):
    clip = make_clip("N W*5")
    write_clip(tmp_path / "a.mp4", clip)
    raw = vectors_to_raw(clip.actions)[0]
    np.savez(tmp_path / "a.npz", actions=raw, poses=clip.poses[1:].astype(np.float32))
    back = read_clip(tmp_path / "a.mp4")
    assert np.allclose(back.poses[1:], clip.poses[1:], atol=1e-4)
    assert np.array_equal(back.poses[0], back.poses[1])
    poses = clip.poses.copy()
    poses[0, 1] = 0.0
    np.savez(tmp_path / "a.npz", actions=raw, poses=poses)
    assert read_clip(tmp_path / "a.mp4").poses[0, 1] == poses[1, 1]


def test_rows_beyond_the_video_are_cut_but_frames_need_rows(tmp_path):
    clip = make_clip("N W*5")
    write_clip(tmp_path / "a.mp4", clip)
    raw = vectors_to_raw(clip.actions)[0]
    np.savez(
        tmp_path / "a.npz", actions=np.concatenate([raw, raw[-1:]]), poses=np.concatenate([clip.poses, clip.poses[-1:]])
    )
    assert len(read_clip(tmp_path / "a.mp4")) == 6
    np.savez(tmp_path / "a.npz", actions=np.repeat(raw, 2, 0), poses=np.repeat(clip.poses, 2, 0))
    with pytest.raises(ValueError, match="a.mp4 has 6 frames, a.npz has 12 actions"):
        read_clip(tmp_path / "a.mp4")
    np.savez(tmp_path / "a.npz", actions=raw[:3], poses=clip.poses[:3])
    with pytest.raises(ValueError, match="a.mp4 has more frames"):
        read_clip(tmp_path / "a.mp4")


def test_errors_name_the_file_and_the_mend(tmp_path):
    clip = make_clip()
    path = tmp_path / "a.mp4"
    with pytest.raises(FileNotFoundError, match="no such clip"):
        read_clip(path)
    write_clip(path, clip)
    good = path.read_bytes()
    path.write_bytes(b"not a video")
    with pytest.raises(ValueError, match="a.mp4 is no readable video"):
        read_clip(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="a.mp4"):
        read_clip(path)
    path.write_bytes(good)
    npz = tmp_path / "a.npz"
    for arrays, message in (
        ({"actions": clip.actions}, "no array 'poses'"),
        ({"actions": clip.actions[:, :7], "poses": clip.poses}, "actions have shape"),
        ({"actions": clip.actions, "poses": clip.poses[:-2]}, "poses have shape"),
        ({"actions": clip.actions, "poses": clip.poses * np.nan}, "NaN"),
    ):
        np.savez(npz, **arrays)
        with pytest.raises(ValueError, match=message):
            read_clip(path)
    npz.write_bytes(b"junk")
    with pytest.raises(ValueError, match="no readable npz"):
        read_clip(path)
    npz.unlink()
    with pytest.raises(FileNotFoundError, match="has no a.npz beside it"):
        read_clip(path)


def test_bad_clips_are_never_half_written(tmp_path):
    with pytest.raises(ValueError, match="even height"):
        write_clip(tmp_path / "a.mp4", make_clip(size=(47, 64)))
    with pytest.raises(ValueError, match="ends in .mp4"):
        write_clip(tmp_path / "a.avi", make_clip())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_clip(tmp_path / "b" / "a.mp4", make_clip())
    clip = make_clip()
    with pytest.raises(ValueError, match="expected uint8"):
        Clip(clip.frames.astype(float), clip.actions, clip.poses)
    with pytest.raises(ValueError, match="one row a frame"):
        Clip(clip.frames[:-1], clip.actions, clip.poses)
    assert not list(tmp_path.iterdir())


def test_reading_only_the_first_frames(tmp_path):
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 40
    poses = np.zeros((6, 5))
    poses[:, 0] = np.arange(6)
    write_clip(tmp_path / "a.mp4", Clip(frames, np.zeros((6, 25), np.float32), poses))
    whole = read_clip(tmp_path / "a.mp4")
    part = read_clip(tmp_path / "a.mp4", length=4)
    assert len(part) == 4 and np.array_equal(part.frames, whole.frames[:4]) and part.poses[-1, 0] == 3
    assert len(read_clip(tmp_path / "a.mp4", length=100)) == 6
