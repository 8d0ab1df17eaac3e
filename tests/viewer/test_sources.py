import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel
from decmem_env.model.pose_predictor import PoseConfig, PosePredictor, save_pose

from decmem_env.conventions.actions import Action, noop, parse_action_string
from decmem_env.conventions.poses import is_exact
from decmem_env.viewer.dream_source import DreamSource, retrieved_frames
from decmem_env.viewer.replay import Verdict, read_recording
from decmem_env.viewer.settings import PlaySettings
from decmem_env.viewer.sources import source_maker
from decmem_env.viewer.true_source import TrueSource

SEED = 8_000_000


def silent(*_):
    pass


@pytest.fixture(scope="module")
def model():
    return WorldModel.from_pretrained("debug", device="cpu")


@pytest.fixture
def dream(model):
    source = DreamSource(model, "L*4", memory="memory", steps=1)
    yield source
    source.close()


def play(source, keys, truth=False):
    return [source.step(action, truth) for action in parse_action_string(keys)]


def test_opening_is_remembered_with_progress_and_pictures(dream):
    seen = []
    opening = dream.reset(SEED, lambda text, done, total, picture: seen.append((text, done, total, picture)))
    assert opening.frames.shape == (5, 96, 160, 3) and len(opening.poses) == 5
    assert opening.shot.memory_frames == 5 and opening.shot.index == 4
    assert seen[-1][:3] == ("remembering", 5, 5)
    np.testing.assert_array_equal(seen[-1][3], opening.frames[-1])


def test_dream_steps_follow_true_physics(dream):
    true = TrueSource()
    opening = dream.reset(SEED, silent)
    true.reset(SEED, silent)
    play(true, "L*4")
    for shot, real in zip(play(dream, "W*3 R W", truth=True), play(true, "W*3 R W"), strict=True):
        np.testing.assert_array_equal(shot.pose, real.pose)
        np.testing.assert_array_equal(shot.truth, real.frame)
        assert shot.frame.dtype == np.uint8 and shot.frame.shape == opening.shot.frame.shape
    assert shot.index == 4 + 5 and shot.memory_frames == 10 and shot.memory_bytes > 0


def test_a_chunk_of_sixteen_frames_is_one_step_of_the_player_for_each():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match="random weights"):
        model = WorldModel.from_pretrained("wan-debug")
    source, true = DreamSource(model, "L*4", memory="memory", steps=1, guidance=1.0), TrueSource()
    seen = []
    opening = source.reset(SEED, lambda text, done, total, picture: seen.append((text, done, total)))
    assert len(opening.frames) == 5 and seen[-1] == ("remembering", 13, 13)
    true.reset(SEED, silent)
    play(true, "L*4")
    (shot,), walked = play(source, "W"), play(true, "W*16")
    np.testing.assert_array_equal(shot.pose, walked[-1].pose)
    np.testing.assert_array_equal(source.session.pending.poses, [real.pose for real in walked[3::4]])
    source.close()
    torch.set_num_threads(threads)


def test_predicted_poses_stay_the_same_after_saving(tmp_path):
    torch.manual_seed(0)
    WorldModel.from_pretrained("debug").save_pretrained(tmp_path / "debug")
    save_pose(tmp_path / "debug", PosePredictor(PoseConfig(latent_channels=8, width=16, fine=8, hidden=16)))
    model = WorldModel.from_pretrained(tmp_path / "debug")
    source = DreamSource(model, "L*4", "predictor", memory="memory", steps=1)
    source.reset(SEED, silent)
    play(source, "W*3 B")
    (tmp_path / "save").mkdir()
    source.save(tmp_path / "save")
    went_on = [shot.pose for shot in play(source, "W*4 R W")]
    source.load(tmp_path / "save", SEED)
    np.testing.assert_array_equal([shot.pose for shot in play(source, "W*4 R W")], went_on)
    np.testing.assert_array_equal(source.stage.pose, went_on[-1])
    (tmp_path / "save" / "player.npz").unlink()
    with pytest.raises(ValueError, match="--pose-source"):
        source.load(tmp_path / "save", SEED)
    source.close()
    with pytest.raises(ValueError, match=r"debug has no pose\.safetensors"):
        DreamSource(WorldModel.from_pretrained("debug"), "L*4", "predictor")


def test_kinematic_poses_walk_through_walls(model):
    source = DreamSource(model, "L", "kinematic", memory="memory", steps=1)
    start = source.reset(SEED, silent).shot.pose
    end = play(source, "W*40")[-1].pose
    assert np.linalg.norm(end[[0, 2]] - start[[0, 2]]) == pytest.approx(40 * 0.4317, rel=1e-3)
    assert end[1] == start[1]
    source.close()


def test_retrieved_frames_are_counted_over_layers_heads_and_queries(dream):
    dream.reset(SEED, silent)
    shots = play(dream, "W*14")
    shot, session = shots[-1], dream.session
    expected = {}
    for lists, counts in session.last_lists:
        for head in range(lists.shape[0]):
            for row in range(lists.shape[1]):
                for j in lists[head, row, : counts[head, row]].tolist():
                    frame = int(session.memory_frames[j // session.model.config.blocks_per_frame])
                    expected[frame] = expected.get(frame, 0) + 1
    total = sum(expected.values())
    assert dict(zip(shot.retrieved.tolist(), shot.shares, strict=True)) == pytest.approx(
        {frame: count / total for frame, count in expected.items()}
    )
    assert (np.diff(shot.shares) <= 0).all() and shot.retrieved.max() < shot.index


def test_frames_seen_by_place_are_listed_alike(dream, monkeypatch):
    dream.reset(SEED, silent)
    monkeypatch.setattr(dream.session, "last_seen", np.array([3, 7]))
    frames, shares = retrieved_frames(dream.session)
    assert frames.tolist() == [7, 3] and shares.tolist() == [0.5, 0.5]


def test_without_retrieval_nothing_is_listed(model):
    source = DreamSource(model, "L", memory="off", steps=1)
    source.reset(SEED, silent)
    assert len(play(source, "W*3")[-1].retrieved) == 0
    assert len(retrieved_frames(model.start(0))[0]) == 0
    source.close()


@pytest.mark.parametrize("kind", ["dream", "true"])
def test_saved_state_continues_bit_for_bit(kind, dream, tmp_path):
    source = dream if kind == "dream" else TrueSource()
    source.reset(SEED, silent)
    play(source, "W*3 J*3 B P SPACE")  # in the air, with two edits
    source.save(tmp_path)
    first = play(source, "W*4 B L", truth=True)
    source.reset(SEED + 1, silent)
    source.load(tmp_path, SEED)
    for a, b in zip(first, play(source, "W*4 B L", truth=True), strict=True):
        np.testing.assert_array_equal(a.frame, b.frame)
        np.testing.assert_array_equal(a.truth, b.truth)
        np.testing.assert_array_equal(a.pose, b.pose)


def test_breaking_a_block_shows_in_the_truth():
    source = TrueSource()
    source.reset(SEED, silent)
    before = play(source, "J*4")[-1]
    after = play(source, "B")[-1]
    assert is_exact(before.pose, after.pose) or after.pose[1] < before.pose[1]
    assert (before.frame != after.frame).mean() > 0.05
    assert source.stage.simulator.edits[0].block == 0


def test_a_dream_replays_bitwise_through_the_engine(engine, wait_for, model, tmp_path):
    def source():
        return DreamSource(model, "L*4", memory="memory", steps=1)

    script = parse_action_string("W*8 L*4 W+R*3 B P")
    first = engine(source(), rate=None, script=script, pause_at_end=True, record=tmp_path / "r")
    wait_for(lambda: first.feed_done, 30)
    first.stop()
    recording = read_recording(tmp_path / "r")
    assert recording.meta["checkpoint_hash"] == model.sha256 and recording.meta["sampler"]["steps"] == 1
    again = engine(source(), rate=None, recording=recording, pause_at_end=True)
    wait_for(lambda: again.feed_done, 30)
    assert isinstance(again.verdict, Verdict) and again.verdict.equal and again.verdict.complete
    other = DreamSource(model, "L*4", memory="off", steps=1)
    refused = engine(other, rate=None, recording=recording)
    assert refused.state.phase == "failed" and "sampler was" in refused.state.text


def test_a_save_of_the_dream_shows_up_whole(engine, wait_for, model, tmp_path):
    thread = engine(DreamSource(model, "L*4", memory="memory", steps=1), rate=None, turn_based=True)
    thread.mailbox.press("w", (Action.FORWARD, 1.0))
    thread.wake()
    wait_for(lambda: thread.latest.index >= 7)
    thread.set_paused(True)
    thread.save()
    wait_for(lambda: list((tmp_path / "saves").glob("*/viewer.json")))
    [folder] = (tmp_path / "saves").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"session.safetensors", "stage.npz", "history.npz", "shot.npz", "viewer.json"} <= names


def test_source_maker_knows_voxel_and_names_what_is_missing():
    assert isinstance(source_maker(PlaySettings(checkpoint="voxel"))(), TrueSource)
    with pytest.raises(ValueError, match="no-such-model"):
        source_maker(PlaySettings(checkpoint="no-such-model"))()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="CUDA"):
            source_maker(PlaySettings(checkpoint="debug", device="cuda"))()


def test_stepping_before_reset_says_so(dream):
    with pytest.raises(RuntimeError, match="call reset first"):
        dream.step(noop())
