import pytest
import torch
from decmem_env.model.autoencoder import AutoencoderConfig, LatentNorm, TinyAutoencoder, to_frames, to_pixels


@pytest.fixture
def small():
    torch.manual_seed(0)
    return TinyAutoencoder(AutoencoderConfig.debug(32, 80))


def frames_of(config, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, config.height, config.width, 3), generator=generator, dtype=torch.uint8)


def test_shapes_and_types(small):
    small.eval()
    frames = frames_of(small.config)
    latents = small.encode(frames)
    assert latents.shape == (2, 8, 2, 5) and latents.dtype == torch.float32 and not latents.requires_grad
    decoded = small.decode(latents.half())
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8 and decoded.is_contiguous()


def test_tiny_budget():
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = TinyAutoencoder(AutoencoderConfig.tiny())
    assert sum(p.numel() for p in model.encoder.parameters()) < 2.7e6
    assert sum(p.numel() for p in model.decoder.parameters()) < 3.3e6
    with FlopCounterMode(display=False) as counter:
        model.decode_float(torch.empty(1, 32, 6, 10, device="meta"))
    assert counter.get_total_flops() <= 1.62e9


def test_conversion_is_exact_both_ways():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    assert torch.equal(to_frames(to_pixels(frames)), frames)


def test_latents_have_unit_variance_in_training(small):
    latents = small.encode_float(to_pixels(frames_of(small.config, 8)))
    assert torch.allclose(latents.var((0, 2, 3), correction=0), torch.ones(8), atol=1e-3)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)


def test_statistics_freeze_in_evaluation():
    norm = LatentNorm(3, momentum=1.0)
    z = torch.randn(4, 3, 2, 2) * 5 + 1
    normed = norm(z)
    norm.eval()
    assert torch.allclose(norm(z), normed, atol=1e-5)
    before = norm.mean.clone()
    norm(z + 100)
    assert torch.equal(norm.mean, before)


def test_training_noise_only_in_training(small):
    pixels = to_pixels(frames_of(small.config))
    small(pixels)
    assert not torch.equal(small(pixels)[0], small(pixels)[0])
    small.eval()
    assert torch.equal(small(pixels)[0], small(pixels)[0])


def test_a_few_steps_learn(small):
    pixels = to_pixels(frames_of(small.config, 4)) * 0.2 + 0.5
    optimiser = torch.optim.AdamW(small.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss = (small(pixels)[0] - pixels).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_config_round_trip_and_errors():
    config = AutoencoderConfig.debug(32, 80)
    assert AutoencoderConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="multiples of 16"):
        AutoencoderConfig(height=90)
    with pytest.raises(ValueError, match="unknown autoencoder settings"):
        AutoencoderConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="4, for"):
        AutoencoderConfig(encoder_widths=(1, 2))


def test_bad_input_is_named(small):
    with pytest.raises(ValueError, match="expected uint8"):
        small.encode(torch.zeros(1, 32, 80, 3))
    with pytest.raises(ValueError, match="latents have shape"):
        small.decode(torch.zeros(1, 4, 2, 5))
