"""Widths, discounts, probabilities, losses and advantages of denoising chains have their closed forms."""

import math

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.denoising import (
    ReturnScale,
    chain_log_prob,
    chain_step,
    clip_widths,
    denoising_discounts,
    denoising_ppo_loss,
    gae,
)


def test_widths_and_discounts():
    widths = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    assert clip_widths(10).tolist() == pytest.approx(widths, abs=6e-7)
    assert clip_widths(1).tolist() == [0.01]
    found = denoising_discounts(10).tolist()
    assert found[:2] == pytest.approx([0.913517, 0.922745], abs=1e-6)
    assert found[-2:] == pytest.approx([0.99, 1.0])


def test_chains_have_the_probability_of_their_steps():
    g = torch.Generator().manual_seed(0)
    means, noise = torch.randn(2, 5, 3, 4, 2, generator=g)
    stds = torch.tensor([0.5, 0.2, 0.03])  # the last one is below the floor
    samples = [torch.randn(5, 4, 2, generator=g)]
    samples += [chain_step(means[:, j], stds[j], noise[:, j]) for j in range(3)]
    found = chain_log_prob(torch.stack(samples, 1), means, stds)
    for j, std in enumerate((0.5, 0.2, 0.1)):
        element = torch.distributions.Normal(means[:, j], std).log_prob(samples[j + 1]).clamp(-5, 2)
        torch.testing.assert_close(found[:, j], element.mean((1, 2)))
    assert float(chain_step(torch.zeros(1), 1.0, torch.tensor([9.0]))) == 3.0
    with pytest.raises(InputError, match="3 steps"):
        chain_log_prob(torch.stack(samples, 1), means[:, :2], stds)


def test_loss_of_an_unmoved_policy_is_the_policy_gradient():
    g = torch.Generator().manual_seed(1)
    old = torch.randn(6, 4, generator=g)
    new, advantages = old.clone().requires_grad_(), torch.randn(6, generator=g)
    found = denoising_ppo_loss(new, old, advantages)
    assert (float(found.kl), float(found.clipped)) == (0, 0)
    (gradient,) = torch.autograd.grad(found.loss, new)
    normal = (advantages - advantages.mean()) / advantages.std()
    expected = -normal[:, None] * denoising_discounts(4).float() / 24
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_steps_beyond_their_width_have_no_gradient():
    old, advantages = torch.zeros(2, 2).double(), torch.tensor([1.0, -1.0]).double()
    new = torch.tensor(
        [[0.0005, 0.02], [0.0005, 0.02]], dtype=torch.float64, requires_grad=True
    )  # the widths are 0.001 and 0.01
    found = denoising_ppo_loss(new, old, advantages)
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert float(found.clipped) == 0.5
    assert ((gradient != 0) == torch.tensor([[True, False], [True, True]])).all()
    ratio = new.detach().exp()
    assert float(found.kl) == pytest.approx(float((ratio - 1 - ratio.log()).mean()))


def test_advantages_are_the_brute_force_sum():
    g = torch.Generator().manual_seed(2)
    rewards, values, following = torch.randn(3, 7, 2, generator=g, dtype=torch.float64)
    terminated, ended = torch.zeros(7, 2, dtype=bool), torch.zeros(7, 2, dtype=bool)
    terminated[2, 0] = ended[2, 0] = True
    ended[4, 1] = True  # a time limit
    found = gae(rewards, values, following, terminated, ended, (0.9, 0.8))
    for n in range(2):
        for t in range(7):
            total, weight = 0.0, 1.0
            for k in range(t, 7):
                bootstrap = 0.0 if terminated[k, n] else 0.9 * following[k, n]
                total += weight * (rewards[k, n] + bootstrap - values[k, n])
                if ended[k, n]:
                    break
                weight *= 0.9 * 0.8
            assert float(found[t, n]) == pytest.approx(float(total))


def test_rewards_are_scaled_by_the_deviation_of_returns():
    rng, scale = np.random.default_rng(0), ReturnScale(3, 0.5)
    seen, returns = [], np.zeros(3)
    for step in range(50):
        rewards, ended = rng.normal(2, 1, 3), rng.random(3) < 0.2
        returns = 0.5 * returns + rewards
        seen += returns.tolist()
        found = scale(torch.from_numpy(rewards), torch.from_numpy(ended))
        expected = np.clip(rewards / math.sqrt(np.var(seen) + 1e-8), -10, 10)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        returns = returns * ~ended
        if step == 20:
            other = ReturnScale(3, 0.5)
            other.load_state_dict(scale.state_dict())
            scale = other
