import json

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from decmem_env.conventions.actions import Action, noop, parse_action_string
from decmem_env.viewer.recorder import Recorder, action_from_json, action_to_json, frame_hash, unused_folder
from decmem_env.viewer.replay import read_recording
from decmem_env.viewer.source import Shot

SCRIPT = "W*4 W+L*3 N P B D*2"


def video_frames(folder):
    return imageio_ffmpeg.count_frames_and_secs(str(folder / "video.mp4"))[0]


def recorded(engine, folder, wait_for, **options):
    thread = engine(rate=None, script=parse_action_string(SCRIPT), pause_at_end=True, record=folder, **options)
    wait_for(lambda: thread.feed_done)
    thread.stop()
    return thread


def test_recording_holds_actions_poses_hashes_facts_and_video(engine, tmp_path, wait_for):
    thread = recorded(engine, tmp_path / "r", wait_for)
    lines = [json.loads(line) for line in (tmp_path / "r" / "actions.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal([action_from_json(x["action"]) for x in lines], parse_action_string(SCRIPT))
    np.testing.assert_allclose(lines[-1]["pose"], thread.latest.pose, atol=0)
    assert lines[-1]["frame"] == frame_hash(thread.latest.frame)
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    assert meta["checkpoint_hash"] == "abc" and meta["seed"] == 7 and meta["frames"] == len(lines)
    assert meta["sampler"] == {"steps": 1} and {"torch", "numpy", "threads"} <= set(meta["versions"])
    assert video_frames(tmp_path / "r") == 1 + len(lines)


def test_every_line_is_on_disk_before_the_next_frame_and_the_video_survives(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    recorder = Recorder(tmp_path / "r", {"seed": 1}, Shot(frame, np.zeros(5), noop(), 0))
    for i in range(25):
        recorder.write(Shot(np.roll(frame, i, 1), np.zeros(5), noop(), i + 1))
        assert len((tmp_path / "r" / "actions.jsonl").read_text().splitlines()) == i + 1
    log = tmp_path / "r" / "actions.jsonl"
    log.write_text(log.read_text() + '{"step": 25, "act')  # the power went off here
    assert len(read_recording(log).actions) == 25
    recorder.close()
    assert video_frames(tmp_path / "r") == 26


def test_actions_survive_json_exactly():
    action = noop()
    action[Action.CAMERA_YAW], action[Action.FORWARD] = np.float32(0.1234567), 1.0
    again = action_from_json(json.loads(json.dumps(action_to_json(action))))
    np.testing.assert_array_equal(again, action)
    with pytest.raises(ValueError, match="FLY"):
        action_from_json({"FLY": 1.0})


def test_a_second_recording_never_overwrites(engine, tmp_path, wait_for):
    recorded(engine, tmp_path / "r", wait_for)
    with pytest.raises(ValueError, match="holds a recording already"):
        Recorder(tmp_path / "r", {}, Shot(np.zeros((24, 40, 3), np.uint8), np.zeros(5), noop(), 0))
    assert unused_folder(tmp_path, "r").name == "r-2"


def test_replay_is_bitwise_equal(engine, tmp_path, wait_for):
    recorded(engine, tmp_path / "r", wait_for)
    again = engine(rate=None, recording=read_recording(tmp_path / "r"), pause_at_end=True)
    wait_for(lambda: again.feed_done)
    assert again.verdict.complete and again.verdict.equal
    assert again.verdict.sentence() == "replay: 12 of 12 frames, bitwise equal"


def test_replay_notices_a_different_frame(engine, tmp_path, FakeSource, wait_for):
    recorded(engine, tmp_path / "r", wait_for)

    class Drifting(FakeSource):
        def step(self, action, truth=False):
            if self.index == 6:
                self.flavour = 1
            return super().step(action, truth)

    again = engine(Drifting(), rate=None, recording=read_recording(tmp_path / "r"), pause_at_end=True)
    wait_for(lambda: again.feed_done)
    assert not again.verdict.equal and again.verdict.first_difference == 4
    assert "differs from frame 4" in again.verdict.sentence()


def test_replay_with_another_checkpoint_is_refused(engine, tmp_path, FakeSource, wait_for):
    recorded(engine, tmp_path / "r", wait_for)

    class Other(FakeSource):
        def describe(self):
            return {**super().describe(), "checkpoint_hash": "xyz"}

    again = engine(Other(), rate=None, recording=read_recording(tmp_path / "r"))
    assert again.state.phase == "failed" and "checkpoint_hash was 'abc' and is 'xyz'" in again.state.text


def test_a_recording_begun_on_the_way_replays_from_its_saved_state(engine, tmp_path, press, wait_for):
    thread = engine(rate=None, turn_based=True)

    def step():
        before = thread.latest.index
        thread.mailbox.press("w", (Action.FORWARD, 1.0))
        thread.mailbox.release("w")
        thread.wake()
        wait_for(lambda: thread.latest.index == before + 1)

    for _ in range(3):
        step()
    thread.toggle_recording()
    wait_for(lambda: thread.recorded_frames is not None)
    for _ in range(4):
        step()
    thread.toggle_recording()
    wait_for(lambda: thread.recorded_frames is None)
    [folder] = (tmp_path / "recordings").iterdir()
    recording = read_recording(folder)
    assert recording.start is not None and len(recording.actions) == 4
    again = engine(rate=None, recording=recording, pause_at_end=True)
    wait_for(lambda: again.feed_done)
    assert again.verdict.equal and again.verdict.complete
    np.testing.assert_array_equal(again.latest.frame, thread.latest.frame)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "meta.json is missing"),
        (lambda folder: (folder / "meta.json").write_text("{"), "is broken"),
        (lambda folder: (folder / "meta.json").write_text('{"format": 99}'), "recording format 99"),
        (lambda folder: (folder / "actions.jsonl").write_text(""), "nothing was recorded"),
        (lambda folder: (folder / "actions.jsonl").write_text("x\n{}\n"), "line 1 is broken"),
    ],
)
def test_broken_recordings_are_named(engine, tmp_path, break_it, message, wait_for):
    recorded(engine, tmp_path / "r", wait_for)
    break_it(tmp_path / "r")
    with pytest.raises(ValueError, match=message):
        read_recording(tmp_path / "r")


def test_a_replay_computes_with_the_recorded_number_of_threads(engine, tmp_path, wait_for, FakeSource):
    seen = []

    class Counting(FakeSource):
        def reset(self, seed, progress):
            seen.append(torch.get_num_threads())
            return super().reset(seed, progress)

    recorded(engine, tmp_path / "r", wait_for)
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    meta["versions"]["threads"] += 1
    (tmp_path / "r" / "meta.json").write_text(json.dumps(meta))
    before = torch.get_num_threads()
    try:
        engine(Counting(), rate=None, recording=read_recording(tmp_path / "r"))
        assert seen == [meta["versions"]["threads"]]
    finally:
        torch.set_num_threads(before)
