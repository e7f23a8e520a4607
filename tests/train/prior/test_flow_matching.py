"""The flow must be the one Wan's pipelines integrate."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from vega_policy.train.prior import flow_matching
from vega_policy.train.prior.flow_matching import draw_times, noised, sample, velocity_target
from vega_policy.train.prior.settings import FlowConfig
from vega_policy.train.prior.stage import draw_generator

SHAPE = (3, 1, 4, 2, 2)


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=g), torch.randn(SHAPE, generator=g)


def test_target_is_the_derivative_of_the_noised_latent(pair):
    latents, noise = (x.double() for x in pair)
    t, h = torch.tensor([0.1, 0.3, 0.9]).double(), 1e-6
    derivative = (noised(latents, noise, t + h) - noised(latents, noise, t - h)) / (2 * h)
    assert torch.allclose(derivative, velocity_target(latents, noise), atol=1e-8)


def test_ends_of_the_flow_are_the_latent_and_the_noise(pair):
    latents, noise = pair
    assert torch.equal(noised(latents, noise, torch.zeros(3)), latents)
    assert torch.equal(noised(latents, noise, torch.ones(3)), noise)


def test_noising_agrees_with_the_scheduler_of_diffusers(pair):
    latents, noise = pair
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    timestep = scheduler.timesteps[[700]]
    expected = scheduler.scale_noise(latents, timestep.expand(3), noise)
    assert torch.allclose(noised(latents, noise, timestep.expand(3) / 1000), expected, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_takes_the_euler_steps_of_diffusers(monkeypatch, shift):
    monkeypatch.setattr(
        flow_matching,
        "velocity",
        lambda _, z, t, prompt: (z + t.view(-1, 1, 1, 1, 1)) * prompt.sum(),
    )
    prompt = torch.full((1, 2), 0.25)
    found = sample(
        None, shape=SHAPE, prompt=prompt, n_steps=6, seed=1, device=torch.device("cpu"), shift=shift
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / 6 for i in range(6)])
    z = torch.randn(SHAPE, generator=draw_generator(1, "sample"))
    for timestep in scheduler.timesteps:
        z = scheduler.step((z + timestep / 1000) * 0.5, timestep, z).prev_sample
    assert torch.allclose(found, z, atol=1e-5)


def test_exact_velocity_of_one_latent_leads_to_it(monkeypatch):
    goal = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(
        flow_matching, "velocity", lambda _, z, t, __: (z - goal) / t.view(-1, 1, 1, 1, 1)
    )
    found = sample(
        None, shape=SHAPE, prompt=torch.ones(1, 2), n_steps=5, seed=0, device=torch.device("cpu")
    )
    assert torch.allclose(found, goal, atol=1e-5)


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_times_lie_inside_and_a_shift_moves_them_to_noise(times):
    plain, shifted = (
        draw_times(500, FlowConfig(times=times, shift=s), draw_generator(0)) for s in (1.0, 5.0)
    )
    assert plain.min() > 0
    assert plain.max() < 1
    assert abs(plain.mean().item() - 0.5) < 0.05
    assert (shifted > plain).all()
