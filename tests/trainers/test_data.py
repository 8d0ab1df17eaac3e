import csv
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from decmem_env.trainers.config import ConfigError, DataConfig, load_config
from decmem_env.trainers.data.frames import FramePool
from decmem_env.trainers.data.latents import LatentPool
from decmem_env.trainers.data.splice import (
    OLDEST,
    YOUNGEST,
    age,
    jump_times,
    jumping_clip,
    revisit_table,
    sample_clip,
    view_numbers,
)
from decmem_env.trainers.data.stream import Episodes, EpisodeStream
from decmem_env.trainers.data.voxel import VALIDATION_JOB, VALIDATION_SEED, EpisodeRenderer, VoxelJob
from decmem_env.trainers.data.worldmem import ClipJob, fit_frames, read_index
from decmem_env.trainers.scores import psnr_per_frame, revisit_kinds

from decmem_env.conventions.actions import Action
from decmem_env.voxel_env import VoxelEnv
from decmem_env.worlds import generate_world, trajectories


def there_and_back(length=128):
    """Walk 64 frames north and the same way back."""
    poses = np.zeros((length, 5))
    poses[:, 2] = np.minimum(np.arange(length), length - 1 - np.arange(length)) * 0.5
    return poses


@dataclass(frozen=True)
class FakeJob:
    """Module level, so that workers can unpickle it."""

    broken: bool = False

    def __call__(self, number):
        if self.broken:
            raise ConfigError("clip 7 is broken")
        frames = np.full((1, 32, 2, 2, 3), number % 256, np.uint8)
        return [Episodes(number, np.zeros((1, 32, 25), np.float32), there_and_back(32)[None], frames=frames)] * 2


def test_clips_keep_time_order():
    rng = np.random.default_rng(0)
    table = revisit_table(there_and_back())
    gaps = 0
    for _ in range(300):
        frames = int(rng.integers(1, 129))
        clip = sample_clip(table, 128, frames, 0.7, rng)
        assert clip.shape == (frames,) and clip.min() >= 0 and clip.max() < 128
        assert (np.diff(clip) >= 1).all()
        gaps += int((np.diff(clip) > 1).any())
    assert gaps > 50


def test_splices_prefer_revisits():
    rng = np.random.default_rng(0)
    poses = np.zeros((512, 5))
    poses[:, 0] = np.arange(512) * 3.0  # never again ...
    poses[400:440] = poses[0:40]  # ... but here
    hits = total = 0
    for _ in range(300):
        clip = sample_clip(revisit_table(poses), 512, 32, 1.0, rng)
        if clip[0] < 20:
            total += 1
            hits += int(((clip >= 396) & (clip < 444)).any())
    assert total > 10 and hits > 0.5 * total


def test_splices_never_jump_over_a_change():
    rng = np.random.default_rng(0)
    table, changes = revisit_table(there_and_back()), np.zeros(128, bool)
    changes[[20, 21, 60, 100]] = True
    gaps = 0
    for _ in range(300):
        clip = sample_clip(table, 128, 32, 1.0, rng, changes)
        assert clip.shape == (32,) and clip[-1] < 128
        inside = [t for t in np.flatnonzero(changes) if clip[0] <= t <= clip[-1]]
        assert set(inside) <= set(clip.tolist())
        gaps += int((np.diff(clip) > 1).any())
    assert gaps > 100


def near_walk(length=512):
    """Between two places, looking about at both: never twice the very same view."""
    rng = np.random.default_rng(1)
    poses = np.zeros((length, 5))
    poses[:, 0] = 30.0 * (np.arange(length) // 128 % 2) + rng.uniform(0.0, 0.8, length)
    poses[:, 4] = 60.0 * (np.arange(length) // 24 % 4) + rng.uniform(-8.0, 8.0, length)
    return poses


def test_jumping_clips_ask_memory_for_views_beside_those_shown():
    rng = np.random.default_rng(0)
    poses = near_walk()
    table, views = revisit_table(poses), view_numbers(poses)
    kinds, jumps = [], []
    for _ in range(40):
        index = jumping_clip(table, views, 96, rng)
        assert index.shape == (96,) and index.min() >= 0 and index.max() < 512
        broken = np.flatnonzero(np.diff(index) != 1) + 1
        assert (broken >= 16).all()
        jumps.append(len(broken))
        kinds.append(revisit_kinds(poses[index])[48:])
        times = jump_times(index, 512, rng)
        assert times[0] == 0 and (np.diff(times) > 0).all()
        assert (np.diff(times)[np.diff(index) == 1] == 1).all() and np.diff(times)[broken - 1].max() > 2
    assert min(jumps) >= 2 and max(jumps) > 40
    near, plain = (np.concatenate(kinds) == 1).mean(), (revisit_kinds(poses[:96])[48:] == 1).mean()
    assert near > 0.2 and near > 2 * plain
    for frames in (2, 8, 9):
        assert len(jumping_clip(table[:3, :3], views[:9], frames, rng)) == frames


def test_views_are_numbered_by_pose():
    poses = np.array([[0.0, 1, 2, 0, 179.9], [0.0, 1, 2, 0, -180.1], [0.3, 1, 2, 0, 180.0], [0.0, 1, 2, 0, 176.0]])
    numbers = view_numbers(poses)
    assert numbers[0] == numbers[1] and len(set(numbers[1:].tolist())) == 3


def test_jumping_clips_show_every_change_of_the_world_in_order():
    rng = np.random.default_rng(0)
    poses = there_and_back(512)
    changes = np.zeros(512, bool)
    changes[[40, 43, 110, 200, 330, 480]] = True
    state = np.cumsum(changes)
    changed = []
    for _ in range(60):
        index = jumping_clip(revisit_table(poses), view_numbers(poses), 96, rng, changes)
        assert index.shape == (96,) and (index < 512).all()
        shown = state[index]
        # A change is seen to happen: never a jump from one state of the world into another.
        for t in np.flatnonzero(np.diff(shown)) + 1:
            assert index[t] == index[t - 1] + 1 and changes[index[t]]
        changed.append(int(changes[index].sum()))
    assert np.mean(changed) > 2


def test_whole_clips_and_errors():
    rng = np.random.default_rng(0)
    clip = sample_clip(revisit_table(there_and_back()), 128, 64, 0.0, rng)
    assert (np.diff(clip) == 1).all()
    with pytest.raises(ValueError, match="shorter than a clip"):
        sample_clip(revisit_table(there_and_back(8)), 8, 9, 0.0, rng)


def pool_of(capacity):
    stream = EpisodeStream(FakeJob(), 0)
    renderer = EpisodeRenderer(2, 2, "cpu")
    encode = lambda frames: frames.float().mean((1, 2, 3))[:, None, None, None].expand(-1, 1, 6, 10)  # noqa: E731
    return LatentPool(stream, renderer, encode, capacity, 32, (1, 6, 10))


def test_latent_pool_is_a_ring_and_its_clips_match():
    pool = pool_of(4)
    pool.fill(4)
    for _ in range(3):
        pool.refresh(32)
    assert pool.added > 4 and pool.count == 4
    batch = pool.sample(DataConfig(batch=3, frames=8), np.random.default_rng(0))
    assert batch.latents.shape == (3, 8, 1, 6, 10) and batch.actions.shape == (3, 8, 25)
    assert batch.projective.shape == (3, 8, 4, 4) and batch.frame_index.dtype == torch.int64
    assert (batch.latents.flatten(1).std(1) == 0).all()  # one trajectory a clip
    identity = batch.projective @ batch.projective_inverse
    assert torch.allclose(identity, torch.eye(4).expand_as(identity), atol=1e-5)


def test_aged_clips_are_older_before_one_place_and_show_the_same():
    rng = np.random.default_rng(1)
    whole, spliced = np.arange(5, 25), np.r_[3:10, 40:53]
    for index, places in ((whole, range(1, 20)), (spliced, [7])):
        gaps = []
        for _ in range(300):
            later = age(index, rng) - index
            place = int(np.argmax(later > 0))
            assert place in places and (later[:place] == 0).all() and len(set(later[place:])) == 1
            gaps.append(later[-1])
        assert YOUNGEST <= min(gaps) < 200 and 20_000 < max(gaps) <= OLDEST
    pool = pool_of(4)
    pool.fill(4)
    young, old = (
        pool.sample(DataConfig(batch=3, frames=8, aged=aged, jumps=0.0, frame_offset=0), np.random.default_rng(0))
        for aged in (0.0, 1.0)
    )
    assert (old.frame_index[:, -1] >= YOUNGEST).all() and (young.frame_index < 32).all()
    for name in ("latents", "actions", "projective"):
        assert getattr(old, name).shape == getattr(young, name).shape


def test_refresh_spends_no_more_than_its_allowance():
    pool = pool_of(64)
    pool.fill(2)
    for _ in range(40):
        pool.refresh(8)
    assert pool.added - 2 <= 40 * 8 / 32 + 1


def test_replay_restores_the_ring():
    pool = pool_of(3)
    pool.fill(3)
    pool.refresh(200)
    other = pool_of(3)
    other.replay(pool.added, pool.allowance)
    assert torch.equal(pool.latents, other.latents) and other.added == pool.added


def test_workers_deliver_in_order_and_pass_errors_on():
    stream = EpisodeStream(FakeJob(), 2, first=5, stride=2, urgent=[100])
    try:
        assert [stream.get().key for _ in range(6)] == [5, 5, 7, 7, 9, 9]
        assert stream.next_job == 11
        assert stream.urgent_results()[0].key == 100
    finally:
        stream.close()
    broken = EpisodeStream(FakeJob(broken=True), 0)
    with pytest.raises(ConfigError, match="clip 7"):
        broken.get()


def test_voxel_jobs_repeat_and_mix_grid_and_free_poses():
    job = VoxelJob(seed=3, length=12, worlds=1)
    first, again, other = job(0)[0], job(0)[0], job(1)[0]
    assert first.key == again.key and np.array_equal(first.poses, again.poses) and first.key != other.key
    assert first.key < VALIDATION_SEED
    assert first.poses.shape == (2, 12, 5) and first.actions.shape == (2, 12, 25) and first.blocks.dtype == np.uint8
    on_grid = [bool(np.allclose(first.poses[i, :, 4] % 15, 0, atol=1e-6)) for i in range(2)]
    assert sorted(on_grid) == [False, True]
    assert job(VALIDATION_JOB + 3)[0].key == VALIDATION_SEED + 3


def test_psnr_and_revisit_kinds():
    truth = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    off = truth.clone()
    off[1] = 25
    scores = psnr_per_frame(off, truth)
    assert scores[0] == 80 and scores[1] == pytest.approx(20.17, abs=0.01)
    poses = np.zeros((30, 5))
    poses[:20, 4] = np.arange(20) * 9.0
    poses[20:, 4] = 0.0
    poses[25:, 4] = 120.0
    kinds = revisit_kinds(poses)
    assert kinds[20] == 2 and kinds[21] == 0  # shown just now: no memory needed
    assert kinds[10] == 0


def test_fit_frames_keeps_the_vertical_view():
    frames = np.zeros((2, 36, 64, 3), np.uint8)
    frames[:, :, 2:62] = 200  # the part that a 5:3 cut keeps
    fitted = fit_frames(frames, (18, 30))
    assert fitted.shape == (2, 18, 30, 3) and (fitted == 200).all()
    assert fit_frames(fitted, (18, 30)) is fitted
    with pytest.raises(ConfigError, match="narrower"):
        fit_frames(np.zeros((1, 36, 40, 3), np.uint8), (18, 30))


def write_index(folder, names):
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video_path", "action_path"])
        writer.writerows((f"{n}.mp4", f"{n}.npz") for n in names)
    return folder / "index.csv"


def test_index_errors(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_index(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="does not exist"):
        read_index(write_index(tmp_path, ["a"]))
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match="expected video_path"):
        read_index(tmp_path / "bad.csv")


def test_clip_job_reads_windows_of_real_clips(tmp_path):
    clips = pytest.importorskip("decmem_env.conventions.clips")
    rng = np.random.default_rng(0)
    for name in "abc":
        actions = np.zeros((20, 25), np.float32)
        actions[1:, 11] = 1
        poses = np.cumsum(np.full((20, 5), 0.1), 0)
        frames = rng.integers(0, 256, (20, 96, 160, 3), dtype=np.uint8)
        clips.write_clip(tmp_path / f"{name}.mp4", clips.Clip(frames, actions, poses, 10))
    job = ClipJob.from_csv(str(write_index(tmp_path, "abc")), 0, 8, (96, 160), skip=5)
    assert len(job.held_out) == 1 and len(job.clips) == 2
    assert len(job(0)) == 1 and len(ClipJob(job.clips, (), 0, 8, (96, 160), skip=0)(0)) == 2
    episode = job(0)[0]
    assert episode.frames.shape == (1, 8, 96, 160, 3) and episode.poses.shape == (1, 8, 5)
    assert episode.poses[0, 0, 0] >= 0.1 * 5
    assert job(VALIDATION_JOB)[0].frames.shape[1] == 8 and job(VALIDATION_JOB + 1) == []
    with pytest.raises(ConfigError, match="fewer than data.episode_frames"):
        ClipJob(job.clips, (), 0, 50, (96, 160))(0)
    (tmp_path / "b.npz").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="b.npz"):
        for number in range(8):
            job(number)


def test_edited_episodes_look_like_the_true_world():
    """Frames rendered around edits are those of the environment that plays the same actions, to the pixel."""
    rng = np.random.default_rng(3)
    world = generate_world(VALIDATION_SEED)
    env = VoxelEnv(height=24, width=40, context_frames=1, action_mode="vector")
    _, info = env.reset(seed=0, options={"world_seed": VALIDATION_SEED})
    plans = np.stack([trajectories._plan(rng, 120, "edit", grid, 0.0, 0.0) for grid in (True, False, True)])
    starts = np.repeat(info["pose"][None], 3, 0)
    poses, edits = trajectories._walk_editing([world], np.zeros(3, int), starts, plans)
    assert all(len(made) >= 1 for made in edits) and max(len(made) for made in edits) >= 2
    episodes = Episodes(VALIDATION_SEED, plans, poses, blocks=world.blocks, edits=edits)
    untouched = world.blocks.copy()
    frames = EpisodeRenderer(24, 40, "cpu", chunk=32).frames(episodes)
    assert frames.shape == (3, 120, 24, 40, 3) and np.array_equal(world.blocks, untouched)
    plain = EpisodeRenderer(24, 40, "cpu").frames(Episodes(0, plans, poses, blocks=world.blocks))
    assert (frames != plain).any()
    for row in range(3):
        frame, _ = env.reset(seed=0, options={"world_seed": VALIDATION_SEED})
        assert np.array_equal(frames[row, 0].numpy(), frame)
        for t in range(1, 120):
            frame, _, _, _, info = env.step(plans[row, t])
            assert np.array_equal(frames[row, t].numpy(), frame), (row, t)
            np.testing.assert_array_equal(info["pose"], poses[row, t])
    env.close()


def test_cells_with_edits_are_marked():
    episodes = VoxelJob(seed=3, length=96, worlds=1, per_world=2, edits=1.0)(0)[0]
    episodes.edits = [episodes.edits[0], episodes.edits[1][:0]]
    renderer = EpisodeRenderer(96, 160, "cpu", chunk=50)
    frames = renderer.frames(episodes)
    changed = renderer.changed(episodes, frames, (6, 10))
    assert changed.shape == (2, 96, 6, 10) and not changed[1].any()
    first = int(episodes.edits[0][0, 0])
    assert not changed[0, :first].any() and changed[0, first].any() and not changed[0, first].all()
    plain = renderer.frames(Episodes(0, episodes.actions, episodes.poses, blocks=episodes.blocks))
    differs = ((frames[0, first].int() - plain[0, first].int()).abs() > 16).any(-1)
    row, column = (int(v) for v in changed[0, first].nonzero()[0])
    assert differs[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].sum() >= 8
    episodes.edits = None
    assert renderer.changed(episodes, plain, (6, 10)) is None


def test_voxel_jobs_edit_a_share_of_their_walks():
    edited = [VoxelJob(seed=3, length=96, worlds=1, per_world=1, edits=1.0)(number)[0] for number in range(2)]
    assert all(episodes.edits is not None and len(episodes.edits[0]) >= 1 for episodes in edited)
    again = VoxelJob(seed=3, length=96, worlds=1, per_world=1, edits=1.0)(0)[0]
    assert np.array_equal(again.edits[0], edited[0].edits[0]) and np.array_equal(again.blocks, edited[0].blocks)
    assert VoxelJob(seed=3, length=96, worlds=1, edits=0.0)(0)[0].edits is None
    assert VoxelJob(seed=3, length=96, edits=1.0)(VALIDATION_JOB)[0].edits is None
    with pytest.raises(ConfigError, match="data.edits=1.5"):
        load_config("dense", {"data.edits": 1.5})


def test_autoencoder_frames_show_edited_worlds():
    job = VoxelJob(seed=3, length=96, worlds=1, per_world=1, edits=1.0)
    pool = FramePool(EpisodeStream(job, 0), EpisodeRenderer(12, 20, "cpu"), 1)
    pool.fill(1)
    episodes = job(0)[0]
    changed = np.argwhere(pool._blocks[0].numpy() != episodes.blocks)
    cells = {tuple(row) for row in episodes.edits[0][:, 1:4].tolist()}
    assert 1 <= len(changed) and {tuple(row) for row in changed.tolist()} <= cells
    assert pool.sample(3, np.random.default_rng(0)).shape == (3, 12, 20, 3)


def test_clips_tell_the_cells_of_a_share_of_the_edits():
    config = load_config("debug_decmem", {"data.edits": 1.0, "data.jumps": 0.0, "data.batch": 8, "data.aged": 0.0})
    data = replace(config.data, frames=64)
    stream = EpisodeStream(VoxelJob(seed=3, length=96, worlds=1, per_world=2, edits=1.0), 0)
    pool = LatentPool(
        stream, EpisodeRenderer(24, 40, "cpu"), lambda f: torch.zeros(len(f), 1, 6, 10), 4, 96, (1, 6, 10)
    )
    pool.fill(4)
    shares = {}
    for told in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(0)
        hands = cells = 0
        for _ in range(6):
            batch = pool.sample(replace(data, told=told), rng)
            known = batch.view[..., 5:].abs().amax(-1) < 8.0
            used = (batch.actions[..., [Action.ATTACK, Action.PLACE]] > 0.5).any(-1)
            assert not (known & ~used).any()
            hands, cells = hands + int(used.sum()), cells + int(known.sum())
        shares[told] = cells / hands
    assert shares[0.0] == 0.0 and 0.3 < shares[0.5] < 0.7 and shares[1.0] > 0.8  # some hands meet nothing
