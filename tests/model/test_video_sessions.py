"""Sessions whose autoencoder connects frames: what is shown does not depend on how a session got there."""

import numpy as np
import pytest
import torch
from decmem_env.model import Snapshot, WorldModel
from decmem_env.model.autoencoders import build_autoencoder
from decmem_env.model.checkpoint import Checkpoint
from decmem_env.model.config import preset
from decmem_env.model.session import Pending
from decmem_env.model.taehv import TinyVideoDecoder
from decmem_env.model.transformer import WorldTransformer
from decmem_env.model.wan_size import WanAutoencoderConfig

from decmem_env.rollout import decoded_truth


@pytest.fixture(scope="module")
def model():
    size = WanAutoencoderConfig(height=64, width=112, base_width=4)
    config = preset("wan-debug").with_overrides(autoencoder=size)
    torch.manual_seed(0)
    parts = [WorldTransformer(config), build_autoencoder(size)]
    for part in parts:
        part.eval().requires_grad_(False)
    return WorldModel(Checkpoint("random", "0" * 64, config, *parts), torch.device("cpu"), torch.float32, 64 << 20)


def latents(count, seed=1):
    return torch.randn(count, 16, 8, 14, generator=torch.Generator().manual_seed(seed))


def chunk_of(z, start):
    """A chunk as a generation leaves it; what the transformer makes is not the point here."""
    index = np.arange(start, start + len(z))
    still, nowhere, nothing = np.zeros((len(z), 5)), np.full((len(z), 3), np.nan), np.zeros((len(z), 0, 4))
    return Pending.of(z, np.zeros((len(z), 100), np.float32), still, index, np.ones(len(z), bool), nowhere, nothing)


def play(session, z, shown):
    """Chunks of four become the newest one after the other; those in `shown` are looked at."""
    frames = {}
    for number, part in enumerate(z.split(4)):
        session.replace_pending(chunk_of(part, 4 * number))
        if number in shown:
            frames[number] = session.decode_context()
    return frames


def test_frames_do_not_depend_on_what_was_looked_at(model):
    z = latents(16)
    whole = model.autoencoder.decode(z).numpy()
    every = play(model.start(), z, {0, 1, 2, 3})
    assert [len(every[i]) for i in range(4)] == [13, 16, 16, 16]
    assert np.array_equal(np.concatenate(list(every.values())), whole)
    for shown in ({3}, {1, 3}):
        some = play(model.start(), z, shown)
        assert all(np.array_equal(some[i], every[i]) for i in shown)
    session = model.start()
    play(session, z, {3})
    assert np.array_equal(session.decode_context(), every[3])  # a second look changes nothing


def test_forks_and_snapshots_go_on_alike(model, tmp_path):
    z = latents(12)
    session = model.start()
    expected = play(model.start(), z, {0, 1, 2})
    play(session, z[:8], {0})
    session.snapshot().save(tmp_path / "s.safetensors")
    twins = [session, *session.fork(2), model.restore(session.snapshot())]
    twins.append(model.restore(Snapshot.load(tmp_path / "s.safetensors")))
    for twin in twins:
        assert np.array_equal(twin.decode_context(), expected[1])
    for twin in twins:
        twin.replace_pending(chunk_of(z[8:], 8))
        assert np.array_equal(twin.decode_context(), expected[2])
    session.close()
    assert session.video.bytes == 0


def test_another_decoder_shows_new_sessions(model, monkeypatch):
    torch.manual_seed(0)
    fast = TinyVideoDecoder().eval().requires_grad_(False)
    monkeypatch.setattr(model, "decoder", fast)
    z = latents(8)
    frames = play(model.start(), z, {0, 1})
    made = fast.decode_chunk(z, None)[0][3:].clamp(0, 1).mul(255).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.concatenate([frames[0], frames[1]]) - made).max() <= 1


def given(count, seed=3):
    rng = np.random.default_rng(seed)
    poses = np.cumsum(rng.normal(size=(count, 5)) * 0.3, 0)
    return rng.integers(0, 256, (count, 64, 112, 3), np.uint8), np.zeros((count, 25), np.float32), poses


def test_a_world_is_observed_and_goes_on(model):
    frames, actions, poses = given(45)
    session, twin = model.start(seed=1), model.start(seed=1)
    session.observe(frames[:29], actions[:29], poses[:29])
    for start, stop in ((0, 13), (13, 29)):
        twin.observe(frames[start:stop], actions[start:stop], poses[start:stop])
    known = model.autoencoder.decode(model.autoencoder.encode(torch.from_numpy(frames[:29]))).numpy()
    assert np.array_equal(session.decode_context(), known[13:])
    assert session.next_frame == 8 and model.frames_per_step == 16
    made = [model.step([s], actions[None, 29:], poses[None, 29:]) for s in (session, twin)]
    assert made[0].shape == (1, 16, 64, 112, 3)
    # Observed at once or in two calls: the same up to rounding of the transformer, and the video has no seam.
    assert np.abs(made[0].astype(int) - made[1]).max() <= 2
    everything = torch.cat([model.autoencoder.encode(torch.from_numpy(frames[:29])), session.pending.latents])
    assert np.array_equal(made[0][0], model.autoencoder.decode(everything).numpy()[29:])
    with pytest.raises(ValueError, match="observe before the first step"):
        session.observe(frames[:16], actions[:16], poses[:16])


def test_observation_takes_whole_chunks(model):
    frames, actions, poses = given(16)
    session = model.start()
    with pytest.raises(ValueError, match="16 frames: expected 13 or any multiple of 16 more"):
        session.observe(frames, actions, poses)
    session.observe(frames[:13], actions[:13], poses[:13])
    with pytest.raises(ValueError, match="13 frames: expected a multiple of the chunk of 16"):
        session.observe(frames[:13], actions[:13], poses[:13])


@pytest.mark.parametrize("count", [1, 6, 9, 13])
def test_decoded_truth_takes_any_number_of_frames(model, count):
    frames = torch.randint(0, 256, (13, 64, 112, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    padded = torch.cat([frames[:count], frames[count - 1 : count].expand(-(count - 1) % 4, -1, -1, -1)])
    expected = model.autoencoder.decode(model.autoencoder.encode(padded))[:count]
    assert torch.equal(decoded_truth(model, frames[:count], 8), expected)
