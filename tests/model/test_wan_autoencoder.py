"""Wan's video autoencoder: parity with diffusers at random weights, and a stream against one pass."""

import pytest
import torch
from decmem_env.model import wan_autoencoder, wan_layers
from decmem_env.model.wan_autoencoder import DEVIATION, MEAN, WanAutoencoder
from decmem_env.model.wan_size import WanAutoencoderConfig
from decmem_env.model.wan_vae import WanVAE

SIZE = WanAutoencoderConfig(height=32, width=48, base_width=4)


def randomised(module):
    """Uneven norms, so that a mistake in their order shows."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in module.named_parameters():
        weight.requires_grad_(False)
        if name.endswith("gamma"):
            weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
        elif weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.5 / weight[0].numel()) ** 0.5)
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return module.eval()


@pytest.fixture(scope="module")
def vae():
    return randomised(WanVAE(4))


@pytest.fixture(scope="module")
def autoencoder():
    return randomised(WanAutoencoder(SIZE))


def pixels(frames, dtype=torch.float32):
    return torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def latents(count, dtype=torch.float32):
    return torch.randn(1, 16, count, 4, 6, generator=torch.Generator().manual_seed(2), dtype=dtype)


def in_pieces(run, whole, sizes):
    assert sum(sizes) == whole.shape[2]
    caches, made = None, []
    for part in whole.split(sizes, 2):
        piece, caches = run(part, caches)
        made.append(piece)
    return torch.cat(made, 2)


def distance(a, b):
    return float((a - b).norm() / b.norm())


def test_full_size_is_wans():
    with torch.device("meta"):
        whole = WanAutoencoder(WanAutoencoderConfig())
    state = whole.state_dict()
    assert len(state) == 194 and sum(t.numel() for t in state.values()) == 126_892_531
    assert sum(t.numel() for n, t in state.items() if n.startswith("encoder.")) == 53_595_872
    assert sum(t.numel() for n, t in state.items() if n.startswith("decoder.")) == 73_295_331
    caches = whole.decode_chunk(torch.empty(1, 16, 1, 44, 80, device="meta"), None)[1]
    assert len(caches) == 32 and sum(t.numel() for t in caches) == 532_674_560


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parity_with_diffusers(vae, dtype, monkeypatch):
    wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    # diffusers upsamples in fp32 whatever the type, which costs fp64 nine digits.
    monkeypatch.setattr(wan.WanUpsample, "forward", torch.nn.Upsample.forward)
    theirs = wan.AutoencoderKLWan(base_dim=4).eval().requires_grad_(False)
    theirs.load_state_dict(vae.state_dict())
    theirs.to(dtype)
    ours = WanVAE(4).eval().requires_grad_(False)
    ours.load_state_dict(vae.state_dict())
    ours.to(dtype)
    exact = torch.equal if dtype == torch.float32 else lambda a, b: distance(a, b) <= 1e-12
    limit = 1e-5 if dtype == torch.float32 else 1e-12

    means = theirs.encode(pixels(13, dtype)).latent_dist.mean
    assert exact(in_pieces(ours.encode_chunk, pixels(13, dtype), (1, 4, 4, 4)), means)
    for sizes in ((1, 12), (13,), (5, 8)):
        assert distance(in_pieces(ours.encode_chunk, pixels(13, dtype), sizes), means) <= limit

    video = theirs.decode(latents(5, dtype)).sample
    assert video.shape[2] == 17 and (video.abs() < 1).float().mean() > 0.5
    assert exact(in_pieces(ours.decode_chunk, latents(5, dtype), (1,) * 5).clamp(-1, 1), video)
    for sizes in ((1, 4), (4, 1), (5,), (2, 2, 1)):
        assert distance(in_pieces(ours.decode_chunk, latents(5, dtype), sizes).clamp(-1, 1), video) <= limit


def test_constants_are_diffusers():
    wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    config = wan.AutoencoderKLWan(base_dim=4).config
    assert tuple(config.latents_mean) == MEAN and tuple(config.latents_std) == DEVIATION


@pytest.mark.parametrize("sizes", [(1, 4), (3, 2), (5,)])
def test_pieces_equal_one_pass(vae, sizes):
    double = WanVAE(4).eval().requires_grad_(False)
    double.load_state_dict(vae.state_dict())
    double.double()
    singly = in_pieces(double.decode_chunk, latents(5, torch.float64), (1,) * 5)
    assert singly.shape == (1, 3, 17, 32, 48)
    assert distance(in_pieces(double.decode_chunk, latents(5, torch.float64), sizes), singly) <= 1e-12
    frames = (4 * sizes[0] - 3, *(4 * n for n in sizes[1:]))
    whole = double.encode_chunk(pixels(17, torch.float64), None)[0]
    assert whole.shape == (1, 16, 5, 4, 6)
    assert distance(in_pieces(double.encode_chunk, pixels(17, torch.float64), frames), whole) <= 1e-12


def test_channels_last_changes_rounding_only(vae):
    other = randomised(WanVAE(4))
    other.use_channels_last()
    laid_out = latents(5).contiguous(memory_format=torch.channels_last_3d)
    made = in_pieces(other.decode_chunk, laid_out, (1, 4))
    assert distance(made, in_pieces(vae.decode_chunk, latents(5), (1, 4))) <= 1e-5


def test_order_of_the_kernels_changes_rounding_only(vae, monkeypatch):
    expected = in_pieces(vae.decode_chunk, latents(3), (1, 2))
    means = in_pieces(vae.encode_chunk, pixels(5), (1, 4))
    monkeypatch.setattr(wan_layers, "has_kernel", lambda x: True)  # biases move out of the convolutions
    assert 0 < distance(in_pieces(vae.decode_chunk, latents(3), (1, 2)), expected) <= 1e-5
    assert 0 < distance(in_pieces(vae.encode_chunk, pixels(5), (1, 4)), means) <= 1e-5


@pytest.mark.gpu
def test_gpu_equals_cpu(vae, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    there = randomised(WanVAE(4)).to("cuda")
    there.use_channels_last()

    def laid_out(x):
        return x.to("cuda").contiguous(memory_format=there.memory_format)

    video = in_pieces(vae.decode_chunk, latents(5), (1,) * 5)
    made = in_pieces(there.decode_chunk, laid_out(latents(5)), (1, 4))
    assert distance(made.cpu(), video) <= 1e-4
    assert made.is_contiguous(memory_format=torch.channels_last_3d)
    means = in_pieces(vae.encode_chunk, pixels(13), (1, 4, 4, 4))
    assert distance(in_pieces(there.encode_chunk, laid_out(pixels(13)), (1, 12)).cpu(), means) <= 1e-4


def frames_of(count, seed=3):
    return torch.randint(0, 256, (count, 32, 48, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_stream_is_bitwise_however_it_is_cut(autoencoder):
    frames = frames_of(13)
    stream, whole = autoencoder.stream(), autoencoder.encode(frames)
    assert whole.shape == (4, 16, 4, 6) and whole.dtype == torch.float32
    assert torch.equal(torch.cat([stream.encode(part) for part in frames.split((5, 8))]), whole)
    raw = autoencoder.encode_chunk((frames / 127.5 - 1).permute(3, 0, 1, 2)[None], None)[0][0].transpose(0, 1)
    normal = (raw - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(DEVIATION).view(-1, 1, 1)
    assert distance(whole, normal) <= 1e-5
    shown = autoencoder.decode(whole)
    assert shown.shape == (13, 32, 48, 3) and shown.dtype == torch.uint8 and 20 < shown.float().std()
    assert torch.equal(torch.cat([stream.decode(part) for part in whole.split((3, 1))]), shown)


def test_streams_share_nothing_that_changes(autoencoder):
    z = torch.randn(6, 16, 4, 6, generator=torch.Generator().manual_seed(7))
    alone, other = autoencoder.decode(z), torch.flip(z, [0])
    one, two = autoencoder.stream(), autoencoder.stream()
    parts = []
    for i in range(4):
        parts.append(one.decode(z[i : i + 1]))
        two.decode(other[i : i + 1])
    child = one.fork()
    saved = {name: tensor.clone() for name, tensor in one.tensors().items()}
    child.decode(other[:2])
    rest = one.decode(z[4:])
    assert torch.equal(torch.cat([*parts, rest]), alone)
    restored = autoencoder.stream()
    restored.load_tensors(saved, torch.device("cpu"))
    assert torch.equal(restored.decode(z[4:]), rest) and restored.bytes == one.bytes > 0


def test_a_full_device_takes_smaller_passes(autoencoder, monkeypatch):
    """A pass that finds no memory runs again on half as much, and the video is the same."""
    z, frames = torch.randn(7, 16, 4, 6, generator=torch.Generator().manual_seed(7)), frames_of(13)
    expected, encoded = autoencoder.decode(z), autoencoder.encode(frames)
    tried = []

    def crowded(run, room):
        def part(items, caches):
            tried.append(len(items))
            if len(items) > room:
                raise torch.OutOfMemoryError("full")
            return run(items, caches)

        return part

    monkeypatch.setitem(wan_autoencoder.LATENTS_PER_PASS, "cpu", 4)
    monkeypatch.setattr(autoencoder, "decode_part", crowded(autoencoder.decode_part, 1))
    stream = autoencoder.stream()
    assert torch.equal(torch.cat([stream.decode(z[:5]), stream.fork().decode(z[5:])]), expected)
    assert tried == [4, 2, *[1] * 7]
    monkeypatch.setattr(autoencoder, "encode_part", crowded(autoencoder.encode_part, 4))
    assert torch.equal(stream.encode(frames), encoded) and tried[9:] == [1, 4, 4, 4]
    monkeypatch.setattr(autoencoder, "decode_part", crowded(autoencoder.decode_part, 0))
    with pytest.raises(torch.OutOfMemoryError):
        stream.decode(z)


def test_skipped_latents_count_as_far_as_they_reach():
    small = randomised(WanAutoencoder(WanAutoencoderConfig(height=16, width=16, base_width=4)))
    z = torch.randn(44, 16, 2, 2, generator=torch.Generator().manual_seed(9))
    expected = small.decode(z)
    stream = small.stream()
    for part in z[:42].split((10, 31, 1)):
        stream.skip(part)
    child = stream.fork()
    saved = stream.tensors()
    assert len(saved) == 1 and stream.bytes == small.reach * 16 * 2 * 2 * 4
    assert torch.equal(stream.decode(z[42:]), expected[165:])
    restored = small.stream()
    restored.load_tensors(saved, torch.device("cpu"))
    assert torch.equal(restored.decode(z[42:]), expected[165:])
    # From inside a video: what was decoded before serves as the beginning.
    other = small.stream()
    other.decode(z[:2])
    other.skip(z[2:40])
    other.skip(z[40:42])
    assert torch.equal(other.decode(z[42:]), expected[165:]) and torch.equal(child.decode(z[42:]), expected[165:])
    # The reach is no longer than it must be, and no shorter.
    double = WanVAE(4).eval().requires_grad_(False)
    double.load_state_dict(small.state_dict())
    double.double()
    changed = torch.zeros(1, 16, 41, 2, 2, dtype=torch.float64)
    changed[:, :, 1] = 3.0
    difference = double.decode_chunk(changed, None)[0] - double.decode_chunk(torch.zeros_like(changed), None)[0]
    moved = difference.abs().amax((0, 1, 3, 4)) > 0
    assert bool(moved[4 * (1 + small.reach) - 3 :][:4].any()) and not moved[4 * (2 + small.reach) - 3 :].any()


def test_refusals(autoencoder):
    stream = autoencoder.stream()
    for count, wanted in ((4, "1 \\+ 4n frames"), (0, "1 \\+ 4n frames")):
        with pytest.raises(ValueError, match=wanted):
            stream.encode(frames_of(count))
    stream.encode(frames_of(1))
    with pytest.raises(ValueError, match="5 frames: expected a multiple of 4"):
        stream.encode(frames_of(5))
    with pytest.raises(ValueError, match="expected uint8"):
        autoencoder.encode(frames_of(1)[:, :16])
    with pytest.raises(ValueError, match="expected \\[n"):
        autoencoder.decode(torch.zeros(1, 16, 4, 5))
    with pytest.raises(ValueError, match="latent_channels is 8"):
        WanAutoencoder(WanAutoencoderConfig(latent_channels=8))
