import pytest
import torch
from decmem_env.trainers.autoencoder import reconstruction_loss
from decmem_env.trainers.config import ObjectiveConfig
from decmem_env.trainers.objective import (
    clean_prediction,
    flow_loss,
    mix,
    noise_context,
    sample_inputs,
    sample_times,
)

CPU = torch.device("cpu")


def test_times_favour_noise():
    torch.manual_seed(0)
    times = sample_times((200, 100), ObjectiveConfig(), CPU)
    pure = (times == 1).float().mean()
    assert 0.28 < pure < 0.32
    rest = times[times < 1]
    # 1 - t is logit-normal(-0.5, 1.2): its median is sigmoid(-0.5) = 0.378.
    assert (1 - rest).median() == pytest.approx(0.378, abs=0.02)


def test_mix_ends():
    z, e = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    assert torch.equal(mix(z, e, torch.zeros(2, 3)), z) and torch.equal(mix(z, e, torch.ones(2, 3)), e)


def test_context_noise_is_partial_and_told():
    torch.manual_seed(0)
    latents = torch.randn(50, 40, 2, 2, 2)
    context, time = noise_context(latents, ObjectiveConfig())
    assert 0.55 < (time > 0).float().mean() < 0.65 and time.max() <= 0.3
    assert torch.equal(context[time == 0], latents[time == 0])
    assert not torch.equal(context[time > 0], latents[time > 0])


def test_inputs_are_consistent():
    torch.manual_seed(0)
    latents = torch.randn(4, 8, 2, 2, 2)
    inputs = sample_inputs(latents, ObjectiveConfig())
    restored = inputs.noisy - inputs.time[..., None, None, None] * inputs.target
    assert torch.allclose(restored, latents, atol=1e-5)
    assert 0 <= (~inputs.action_mask).float().mean() < 0.4


def test_loss_weights():
    torch.manual_seed(0)
    inputs = sample_inputs(torch.randn(4, 8, 2, 2, 2), ObjectiveConfig())
    assert flow_loss(inputs.target, inputs, "velocity") == 0
    velocity = inputs.target + 0.5
    assert flow_loss(velocity, inputs, "velocity") == pytest.approx(0.25)
    assert flow_loss(velocity, inputs, "x0") == pytest.approx(0.25)
    velocity = inputs.target.clone()
    velocity[inputs.time < 0.5] += 1.0
    assert flow_loss(velocity, inputs, "x0") < flow_loss(velocity, inputs, "velocity")


def test_clean_prediction_inverts_the_noising():
    latents = torch.randn(4, 8, 2, 2, 2)
    inputs = sample_inputs(latents, ObjectiveConfig())
    assert torch.allclose(clean_prediction(inputs.target, inputs), latents, atol=1e-5)


def test_reconstruction_loss_counts_edges():
    config = ObjectiveConfig(l1=0.0, l2=0.0, gradient=1.0)
    pixels = torch.zeros(1, 3, 4, 4)
    assert reconstruction_loss(pixels + 0.3, pixels, config) == pytest.approx(0.0, abs=1e-6)
    stripes = pixels.clone()
    stripes[..., ::2] = 1.0
    assert reconstruction_loss(stripes, pixels, config) == pytest.approx(0.5)
    config = ObjectiveConfig(l1=1.0, l2=4.0, gradient=0.0)
    assert reconstruction_loss(pixels + 0.5, pixels, config) == pytest.approx(0.5 + 4 * 0.25)
