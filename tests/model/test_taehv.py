"""TAEHV's decoder against its definition, frame by frame; the trims; loading."""

import pytest
import torch
import torch.nn.functional as F
from decmem_env.model.taehv import TinyVideoDecoder, load_tiny_decoder
from decmem_env.model.video_stream import VideoStream
from decmem_env.model.wan_autoencoder import WanAutoencoder
from decmem_env.model.wan_size import WanAutoencoderConfig
from decmem_env.model.weight_files import CheckpointError
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return TinyVideoDecoder().eval().requires_grad_(False)


def latents(count):
    return 2 * torch.randn(count, 16, 2, 3, generator=torch.Generator().manual_seed(1))


def by_definition(state, z):
    """The network one frame at a time, in the order in which it is defined: enlarge, make frames, convolve."""

    def conv(x, name):
        weight = state[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, state.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    def memory(frames, place):
        before, made = torch.zeros_like(frames[0]), []
        for x in frames:
            y = F.relu(conv(torch.cat([x, before], 1), f"{place}.conv.0"))
            y = conv(F.relu(conv(y, f"{place}.conv.2")), f"{place}.conv.4")
            made.append(F.relu(y + x))
            before = x
        return made

    frames = [F.relu(conv(torch.tanh(x[None] / 3) * 3, 1)) for x in z]
    for start in (3, 9, 15):
        for place in range(start, start + 3):
            frames = memory(frames, place)
        frames = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in frames]
        width = frames[0].shape[1]
        grown = [conv(x, f"{start + 4}.conv") for x in frames]
        frames = [part for x in grown for part in x.split(width, 1)]
        frames = [conv(x, start + 5) for x in frames]
    return torch.cat([conv(F.relu(x), 22) for x in frames])


def test_parameters_are_taew2_1s(decoder):
    state = decoder.state_dict()
    assert sum(t.numel() for t in state.values()) == 9_844_611
    assert state["decoder.7.conv.weight"].shape == (256, 256, 1, 1)
    assert state["decoder.19.conv.weight"].shape == (128, 64, 1, 1)
    assert state["decoder.15.conv.0.weight"].shape == (64, 128, 3, 3) and state["decoder.22.bias"].shape == (3,)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3,), (1, 2)])
def test_stream_equals_definition(decoder, sizes):
    expected = by_definition(decoder.state_dict(), latents(3))
    caches, made = None, []
    for part in latents(3).split(sizes):
        pixels, caches = decoder.decode_chunk(part, caches)
        made.append(pixels)
    assert expected.shape == (12, 3, 16, 24) and expected.std() > 0.01
    assert float((torch.cat(made) - expected).norm() / expected.norm()) <= 1e-5


def test_frames_are_trimmed_once(decoder):
    z = latents(6)
    expected = by_definition(decoder.state_dict(), z)[3:].mul(255).round().clamp(0, 255).permute(0, 2, 3, 1)
    for sizes in ((1, 5), (6,), (2, 4)):
        stream = VideoStream(decoder, decoder)
        frames = torch.cat([stream.decode(part) for part in z.split(sizes)])
        assert frames.dtype == torch.uint8 and frames.shape == (21, 16, 24, 3)
        assert (frames.float() - expected).abs().max() <= 1


def test_takes_the_place_of_wans_decoder(decoder):
    autoencoder = WanAutoencoder(WanAutoencoderConfig(height=16, width=24, base_width=4)).eval()
    stream = autoencoder.stream(decoder)
    z = stream.encode(torch.zeros(5, 16, 24, 3, dtype=torch.uint8))
    assert torch.equal(stream.decode(z), VideoStream(decoder, decoder).decode(z))
    assert stream.fork().decode(latents(1)).shape == (4, 16, 24, 3)


def test_loads_the_published_layout(decoder, tmp_path):
    own = decoder.state_dict()
    # The file has an encoder too, and may make two frames where one is wanted: the later one counts.
    early = torch.full_like(own["decoder.7.conv.weight"], 9.0)
    stored = {**own, "decoder.7.conv.weight": torch.cat([early, own["decoder.7.conv.weight"]])}
    stored["encoder.0.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(stored, tmp_path / "taew2_1.pth")
    save_file(stored, tmp_path / "taew2_1.safetensors")
    for name in ("taew2_1.pth", "taew2_1.safetensors"):
        loaded = load_tiny_decoder(tmp_path / name)
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in decoder.state_dict().items())
        made, expected = (d.decode_chunk(latents(2), None)[0] for d in (loaded, decoder))
        assert float((made - expected).norm() / expected.norm()) <= 1e-5
    del stored["decoder.22.bias"]
    torch.save(stored, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="lacks decoder.22.bias"):
        load_tiny_decoder(tmp_path / "short.pth")
    torch.save({**own, "decoder.1.weight": torch.zeros(256, 48, 3, 3)}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="decoder.1.weight has shape"):
        load_tiny_decoder(tmp_path / "wrong.pth")
