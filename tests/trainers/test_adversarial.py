import functools
import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from decmem_env.trainers import adversarial, run_stage
from decmem_env.trainers.adversarial import RAMP, Adversary
from decmem_env.trainers.config import ConfigError, ObjectiveConfig, TrainConfig, load_config
from decmem_env.trainers.curves import read_log
from decmem_env.trainers.distributed import Ranks
from decmem_env.trainers.objective import flow_loss, sample_inputs
from safetensors.torch import load_file
from torch import nn

CONFIG = ObjectiveConfig(weight="log", pure_noise=1.0, action_dropout=0.0, context_noise=0.0)
SHAPE = (4, 16, 4, 3, 4)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(adversarial, "Discriminator", functools.partial(adversarial.Discriminator, width=32))
    torch.manual_seed(0)


def warm(share):
    """An adversary that is past its ramp."""
    adversary = Adversary(share, SHAPE[2], Ranks("cpu"), nullcontext)
    adversary.steps = RAMP
    return adversary


def two_valued():
    """Latents whose every cell is one of two values; nothing tells which."""
    sign = torch.randint(0, 2, (*SHAPE[:2], 1, *SHAPE[3:])).float() * 2.0 - 1.0
    return 0.8 * sign.expand(SHAPE) + 0.1 * torch.randn(SHAPE)


def step(adversary, velocity, inputs, latents, valid=None):
    flow = flow_loss(velocity, inputs, CONFIG)
    valid = torch.ones(SHAPE[:2], dtype=torch.bool) if valid is None else valid
    return flow, adversary.add(flow, velocity, inputs, latents, valid)


def test_value_stays_and_gradient_has_the_share():
    latents = two_valued()
    inputs = sample_inputs(latents, CONFIG)
    velocity = (inputs.noisy - 0.1 * torch.randn(SHAPE)).requires_grad_()
    flow, loss = step(warm(0.5), velocity, inputs, latents)
    assert torch.equal(loss, flow)
    (pull,) = torch.autograd.grad(flow, velocity, retain_graph=True)
    (both,) = torch.autograd.grad(loss, velocity)
    push = both - pull
    assert float(push.norm() / pull.norm()) == pytest.approx(0.5, rel=1e-3)


def test_a_frame_that_cannot_be_known_is_not_pushed_harder_than_the_flow_loss_pulls_it():
    latents = two_valued()
    latents[0] *= 10.0
    inputs = sample_inputs(latents, CONFIG)
    velocity = (inputs.noisy - 0.1 * torch.randn(SHAPE)).requires_grad_()
    flow, loss = step(warm(1.0), velocity, inputs, latents)
    (pull,) = torch.autograd.grad(flow, velocity, retain_graph=True)
    push = torch.autograd.grad(loss, velocity)[0] - pull
    ratio = push.flatten(2).norm(dim=2) / pull.flatten(2).norm(dim=2)
    assert 0.2 < ratio.min() and ratio.max() < 3.0


def test_only_valid_frames_are_pushed_and_none_is_no_error():
    latents = two_valued()
    inputs = sample_inputs(latents, CONFIG)
    velocity = inputs.noisy.clone().requires_grad_()
    for valid in (torch.rand(SHAPE[:2]) < 0.5, torch.zeros(SHAPE[:2], dtype=torch.bool)):
        flow, loss = step(warm(0.5), velocity, inputs, latents, valid)
        (pull,) = torch.autograd.grad(flow, velocity, retain_graph=True)
        push = torch.autograd.grad(loss, velocity)[0] - pull
        assert torch.equal(push.flatten(2).abs().sum(2) > 1e-9, valid)


def test_one_step_reaches_generator_and_discriminator_and_ramps_up():
    latents = two_valued()
    inputs = sample_inputs(latents, CONFIG)
    generator = nn.Conv2d(4, 4, 1)
    adversary = Adversary(0.5, 4, Ranks("cpu"), nullcontext)
    before = [p.detach().clone() for p in adversary.module.parameters()]
    grads = []
    for share in (0.0, 0.5):
        adversary.share = share
        velocity = generator(inputs.noisy.flatten(0, 1)).view(SHAPE)
        generator.zero_grad()
        step(adversary, velocity, inputs, latents)[1].backward()
        grads.append(generator.weight.grad.clone())
    assert all(torch.isfinite(g).all() for g in grads) and not torch.equal(*grads)
    after = list(adversary.module.parameters())
    assert all(torch.isfinite(p).all() and not torch.equal(a, p) for a, p in zip(before, after, strict=True))
    figures = adversary.figures()
    assert all(math.isfinite(v) for v in figures.values()) and adversary.figures() == {}
    assert 0 <= figures["discriminator_right"] <= 1 and figures["discriminator_loss"] < 2
    assert adversary.steps == 2


def spread(share, steps=120):
    """Standard deviation over cells that a small generator ends with, as a part of the true one."""
    adversary = warm(share) if share else None
    generator = nn.Sequential(nn.Conv2d(4, 32, 1), nn.GELU(), nn.Conv2d(32, 4, 1))
    optimiser = torch.optim.Adam(generator.parameters(), lr=3e-3, betas=(0.9, 0.99))
    for _ in range(steps):
        latents = two_valued()
        inputs = sample_inputs(latents, CONFIG)
        made = generator(inputs.noisy.flatten(0, 1)).view(SHAPE)
        velocity = inputs.noisy - made
        loss = flow_loss(velocity, inputs, CONFIG)
        if adversary is not None:
            loss = step(adversary, velocity, inputs, latents)[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(made.detach().mean(2).std() / latents.mean(2).std())


def test_predictions_regain_about_the_share_of_the_spread_that_a_squared_error_takes():
    assert spread(0.0) < 0.1
    assert 0.3 < spread(0.5) < 0.9


def test_settings_are_checked():
    assert TrainConfig().objective.adversarial == 0.0
    for wrong in ({"objective.adversarial": -1.0}, {"objective.adversarial": 0.5, "objective.pure_noise": 0.0}):
        with pytest.raises(ConfigError, match="adversarial"):
            load_config("decmem", wrong)


def test_a_stage_goes_on_with_it_where_the_state_has_none(runs, tmp_path):
    shutil.copytree(runs["decmem"], tmp_path, dirs_exist_ok=True)
    assert not (tmp_path / "state" / "adversary.safetensors").exists()
    settings = {"run.steps": 4, "run.log_seconds": 0, "objective.adversarial": 0.5}
    result = run_stage("debug_decmem", tmp_path, settings, device="cpu", init=runs["dense"])
    assert result["step"] == 4 and result["own_sharpness"] > 0
    (last,) = (r for r in read_log(tmp_path / "log.jsonl") if r["step"] == 4 and "loss" in r)
    assert 0 < last["discriminator_loss"] < 2 and last["adversarial_weight"] > 0 and last["latent_detail"] > 0
    assert int(load_file(tmp_path / "state" / "adversary.safetensors")["steps"]) == 2
