import pytest
import torch
from decmem_env.model import flow


def test_noise_and_clean_estimate_are_inverse():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 5, 6, 7, generator=generator)
    time = torch.rand(3, 4, generator=generator)
    noisy = flow.add_noise(clean, noise, time)
    assert torch.equal(flow.add_noise(clean, noise, torch.zeros(3, 4)), clean)
    assert torch.equal(flow.add_noise(clean, noise, torch.ones(3, 4)), noise)
    torch.testing.assert_close(flow.clean_estimate(noisy, noise - clean, time), clean)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("renoise", [False, True])
def test_every_sampler_ends_at_the_truth_when_the_velocity_is_exact(steps, renoise):
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 1, 1, 3, 2, 2, generator=generator)
    state, times = noise, [*flow.schedule(steps), 0.0]
    assert len(times) == steps + 1 and times[0] == 1.0
    for now, then in zip(times[:-1], times[1:], strict=True):
        fresh = torch.randn(state.shape, generator=generator) if renoise else None
        state = flow.advance(state, (state - clean) / now, now, then, fresh)
    torch.testing.assert_close(state, clean)


def test_guidance_is_eq_14():
    none, action = torch.tensor([1.0]), torch.tensor([3.0])
    assert flow.guided(none, action, 1.0) == 3.0 and flow.guided(none, action, 0.0) == 1.0
    assert flow.guided(none, action, 5.0) == 11.0


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        flow.schedule(0)
