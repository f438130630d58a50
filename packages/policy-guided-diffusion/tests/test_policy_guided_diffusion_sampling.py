"""Noise levels, churn, guidance weights, steps and gradients have their closed forms."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.policy_guided_diffusion.guidance import Guide, guidance_weights, policy_gradient
from noiseworks.policy_guided_diffusion.options import Guidance, Sampling
from noiseworks.policy_guided_diffusion.policies import gaussian
from noiseworks.policy_guided_diffusion.sampling import churn_rates, noise_levels, sample_windows
from noiseworks.policy_guided_diffusion.windows import Scaler


def standard_normal_denoiser(x, sigma):
    """D of data N(0, 1): x / (1 + σ^2)."""
    return x / (1 + sigma.to(x)[:, None, None] ** 2)


@pytest.mark.parametrize(
    ("steps", "levels"),
    [
        (8, {0: 80, 1: 34.99219, 2: 13.69857, 3: 4.63707, 5: 0.267475, 6: 0.035187, 7: 0.002, 8: 0}),
        (4, {0: 80, 1: 9.72320, 2: 0.469979, 3: 0.002, 4: 0}),
    ],
)
def test_noise_levels(steps, levels):
    found = noise_levels(Sampling(steps=steps))
    assert len(found) == steps + 1
    for i, value in levels.items():
        assert float(found[i]) == pytest.approx(value, rel=2e-5)


@pytest.mark.parametrize(
    ("steps", "rate", "count"), [(8, 0.414214, 5), (128, 0.414214, 96), (256, 0.3125, 191)]
)
def test_churn(steps, rate, count):
    rates = churn_rates(Sampling(steps=steps))
    assert max(rates) == pytest.approx(rate, abs=1e-6)
    assert sum(r > 0 for r in rates) == count
    assert set(rates) == {0.0, max(rates)}


def test_guidance_weights():
    expected = [1.11481, 1.08713, 1.02716, 0.92500, 0.77716, 0.58713, 0.36481, 0]
    assert guidance_weights(Guidance(), 8) == pytest.approx(expected, abs=1e-5)
    assert guidance_weights(Guidance(coefficient=2.0, delay=3), 8) == pytest.approx(
        [0, 0, 0, *[2 * v for v in expected[3:]]], abs=2e-5
    )
    assert not any(guidance_weights(Guidance(coefficient=0.0), 8))


def one_step(monkeypatch, order, euler_from="churned", noise=None):
    import noiseworks.policy_guided_diffusion.sampling as module

    monkeypatch.setattr(
        module, "noise_levels", lambda sampling: torch.tensor([2.0, 1.0], dtype=torch.float64)
    )
    monkeypatch.setattr(module, "churn_rates", lambda sampling: [math.sqrt(2) - 1 if noise else 0.0])
    if noise:
        monkeypatch.setattr(
            module.torch, "randn", lambda *a, **k: torch.full((1, 1, 1), noise, dtype=torch.float64)
        )
    sampling = Sampling(steps=2, order=order, euler_from=euler_from)
    x = torch.full((1, 1, 1), 1.5, dtype=torch.float64)  # the sampler scales it by the first level, to 3
    return float(module.sample_windows(standard_normal_denoiser, x, sampling))


def test_euler_and_heun_of_the_normal_distribution(monkeypatch):
    assert one_step(monkeypatch, 1) == pytest.approx(1.8)
    assert one_step(monkeypatch, 2) == pytest.approx(1.95)


def test_a_churned_step_and_the_one_of_the_papers_code(monkeypatch):
    assert one_step(monkeypatch, 1, noise=1.0) == pytest.approx(2.129456, abs=1e-6)
    assert one_step(monkeypatch, 1, "unchurned", noise=1.0) == pytest.approx(0.123456, abs=1e-6)


def test_samples_of_the_normal_distribution_are_normal():
    x = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0))
    found = sample_windows(
        standard_normal_denoiser, x, Sampling(steps=32), generator=torch.Generator().manual_seed(1)
    )
    assert float(found.mean()) == pytest.approx(0, abs=0.06)
    assert float(found.std()) == pytest.approx(1, abs=0.05)


def test_gradient_of_a_deterministic_policy_is_the_closed_form():
    scaler = Scaler(1, 1)
    point = torch.tensor([[[0.7, 0.5, 0.0, 0.0]]])
    found = policy_gradient(point, scaler, gaussian(lambda obs: torch.full_like(obs, 0.2)), normalize=False)
    t = math.tanh(0.5)
    assert float(found) == pytest.approx((0.2 - t) * (1 - t**2), abs=1e-6)
    assert float(found) == pytest.approx(-0.206141, abs=1e-6)


def test_gradients_are_scaled_to_one_a_trajectory_and_zero_stays_zero():
    scaler, generator = Scaler(2, 3), torch.Generator().manual_seed(0)
    scaler.fit(torch.randn(50, 7, generator=generator) * 2 + 1)
    point = torch.randn(4, 6, 7, generator=generator)
    raw = policy_gradient(
        point, scaler, gaussian(lambda obs: obs[..., :1].expand(*obs.shape[:-1], 3)), normalize=False
    )
    scaled = policy_gradient(
        point, scaler, gaussian(lambda obs: obs[..., :1].expand(*obs.shape[:-1], 3)), normalize=True
    )
    torch.testing.assert_close(scaled.flatten(1).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(scaled, raw / raw.flatten(1).norm(dim=1)[:, None, None])
    still = scaler.actions(point[..., scaler.action_part])
    zero = policy_gradient(
        point, scaler, lambda obs, action: -((action - still) ** 2).sum(-1), normalize=True
    )
    assert torch.equal(zero, torch.zeros_like(zero))


def test_no_gradient_reaches_the_point():
    point = torch.randn(2, 3, 4, requires_grad=True)
    found = policy_gradient(point, Scaler(1, 1), gaussian(lambda obs: obs), normalize=True)
    assert not found.requires_grad
    with pytest.raises(InputError, match="depend on the action"):
        policy_gradient(point, Scaler(1, 1), lambda obs, action: obs.sum(-1), normalize=True)


QUICK = Sampling(steps=16)


def guide(coefficients=None, **changes):
    policy = gaussian(lambda obs: torch.full_like(obs, 0.6))
    return Guide(policy, Scaler(1, 1), Guidance(**changes), coefficients)


def draw(x, guide=None, seed=1):
    return sample_windows(standard_normal_denoiser, x, QUICK, guide, torch.Generator().manual_seed(seed))


def test_a_zero_coefficient_is_the_sampler_without_guidance():
    x = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(x, guide(coefficient=0.0)), draw(x))


@pytest.mark.parametrize("at", ["noisy", "denoised"])
def test_only_actions_are_pushed(at):
    """With channels that do not see each other, guidance leaves all but the actions as they were."""
    x = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0))
    made, plain = draw(x, guide(at=at)), draw(x)
    assert torch.equal(made[..., [0, 2, 3]], plain[..., [0, 2, 3]])
    assert not torch.equal(made[..., 1], plain[..., 1])


def test_a_sweep_in_one_call_moves_actions_towards_the_policy_step_by_step():
    sweep = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0])
    x = torch.randn(1, 400, 4, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1)
    means = torch.tanh(draw(x, guide(sweep, normalize=False))[..., 1]).mean(1)
    assert (means.diff() > 0).all(), means
    one = draw(x[:1], guide(normalize=False, coefficient=0.5), seed=2)
    assert float(torch.tanh(one[..., 1]).mean()) == pytest.approx(float(means[2]), abs=0.1)


def test_steps_that_blow_up_stop():
    with pytest.raises(NonFiniteError, match="step 0"):
        sample_windows(lambda x, sigma: x * math.inf, torch.ones(1, 2, 4), Sampling(steps=4))
