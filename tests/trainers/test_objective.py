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


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_new_views_have_a_share_of_pure_noise_of_their_own(share):
    torch.manual_seed(0)
    new = torch.rand(200, 100) < 0.3
    times = sample_times((200, 100), ObjectiveConfig(new_view_noise=share), CPU, new)
    pure = times == 1
    assert float(pure[new].float().mean()) == pytest.approx(share, abs=0.02 if 0 < share < 1 else 0)
    assert 0.28 < pure[~new].float().mean() < 0.32
    if share < 1:
        assert (1 - times[new & ~pure]).median() == pytest.approx(0.378, abs=0.02)


def test_new_views_are_as_all_others_without_that_share():
    new = torch.rand(50, 40) < 0.5
    drawn = []
    for given in (new, None):
        torch.manual_seed(0)
        drawn.append(sample_times((50, 40), ObjectiveConfig(), CPU, given))
    assert torch.equal(*drawn)


def test_inputs_are_told_of_new_views():
    torch.manual_seed(0)
    new = torch.rand(4, 80) < 0.5
    inputs = sample_inputs(torch.randn(4, 80, 2, 2, 2), ObjectiveConfig(new_view_noise=0.0), new=new)
    assert not (inputs.time == 1)[new].any() and (inputs.time == 1)[~new].any()


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
    plain, clean = ObjectiveConfig(weight="velocity"), ObjectiveConfig(weight="x0")
    assert flow_loss(inputs.target, inputs, plain) == 0
    velocity = inputs.target + 0.5
    for config in (plain, clean, ObjectiveConfig(weight="log")):
        assert flow_loss(velocity, inputs, config) == pytest.approx(0.25)
    velocity = inputs.target.clone()
    velocity[inputs.time < 0.5] += 1.0
    assert flow_loss(velocity, inputs, clean) < flow_loss(velocity, inputs, plain)


def test_log_weight_is_the_gradient_of_the_mean_log_error():
    torch.manual_seed(0)
    inputs = sample_inputs(torch.randn(2, 3, 2, 2, 2, dtype=torch.float64), ObjectiveConfig())
    velocity = (inputs.target + torch.randn(2, 3, 1, 1, 1, dtype=torch.float64)).float().requires_grad_()
    config = ObjectiveConfig(weight="log", log_floor=0.1)
    (found,) = torch.autograd.grad(flow_loss(velocity, inputs, config), velocity)
    error = (velocity.float() - inputs.target).square().mean((2, 3, 4))
    (wanted,) = torch.autograd.grad((error + 0.1).log().mean(), velocity)
    ratio = found / wanted
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)
    assert found.abs().mean() > 0


def test_changed_cells_count_more():
    torch.manual_seed(0)
    inputs = sample_inputs(torch.randn(2, 3, 4, 2, 5), ObjectiveConfig())
    changed = torch.zeros(2, 3, 2, 5, dtype=torch.bool)
    changed[0, 1, 1, 2] = True
    velocity = inputs.target.clone()
    velocity[0, 1, :, 1, 2] += 1.0
    config = ObjectiveConfig(weight="velocity", edit_weight=6.0)
    assert flow_loss(velocity, inputs, config, changed) == pytest.approx(
        6.0 * float(flow_loss(velocity, inputs, config))
    )
    assert flow_loss(velocity, inputs, config, ~changed) == pytest.approx(float(flow_loss(velocity, inputs, config)))


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
