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
    return Pending(z, np.zeros((len(z), 100), np.float32), np.zeros((len(z), 5)), index)


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


def test_no_observation_after_a_generated_frame(model):
    session = model.start()
    session.generated = True
    frames, actions = np.zeros((4, 64, 112, 3), np.uint8), np.zeros((4, 25), np.float32)
    with pytest.raises(ValueError, match="observe before the first step"):
        session.observe(frames, actions, np.zeros((4, 5)))


@pytest.mark.parametrize("count", [1, 6, 9, 13])
def test_decoded_truth_takes_any_number_of_frames(model, count):
    frames = torch.randint(0, 256, (13, 64, 112, 3), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    padded = torch.cat([frames[:count], frames[count - 1 : count].expand(-(count - 1) % 4, -1, -1, -1)])
    expected = model.autoencoder.decode(model.autoencoder.encode(padded))[:count]
    assert torch.equal(decoded_truth(model, frames[:count], 8), expected)
