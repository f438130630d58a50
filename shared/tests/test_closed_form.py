"""Exact mixture scores against automatic differentiation, quadrature and sampling."""

import math

import pytest
import torch
from noiseworks.core.closed_form import GaussianMixture, gaussian
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, add_noise, stable_diffusion
from noiseworks.core.testing import convergence_order, max_relative_error, three_peaks

PEAKS = three_peaks()


def test_the_score_is_the_gradient_of_the_log_density():
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    level = stable_diffusion().level(torch.tensor([0, 50, 200, 500, 800, 999]))
    (gradient,) = torch.autograd.grad(PEAKS.log_prob(x, level).sum(), x)
    assert torch.allclose(gradient, PEAKS.score(x.detach(), level), rtol=1e-10)


def test_the_density_integrates_to_one():
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    density = PEAKS.log_prob(points, stable_diffusion().level(300)).exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-9)


def test_one_gaussian_has_the_textbook_score():
    data = gaussian(torch.tensor([2.0]).double(), torch.tensor([[0.25]]).double())
    level = Level(torch.tensor(0.8).double(), torch.tensor(0.6).double())
    x = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    variance = 0.64 * 0.25 + 0.36
    assert torch.allclose(data.score(x, level), (1.6 - x) / variance)
    assert torch.allclose(data.x0(x, level), 2 + 0.8 * 0.25 / variance * (x - 1.6))
    assert torch.allclose(
        data.log_prob(x, level), torch.distributions.Normal(1.6, math.sqrt(variance)).log_prob(x[:, 0])
    )


def test_two_points_give_the_hyperbolic_tangent_denoiser():
    data = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1, 1))
    level = Level(torch.tensor(0.8).double(), torch.tensor(0.6).double())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    assert torch.allclose(data.x0(x, level), torch.tanh(0.8 * x / 0.36), atol=1e-12)


def test_noise_and_denoiser_predictions_are_consistent():
    x, level = torch.randn(5, 2).double(), stable_diffusion().level(400)
    assert torch.allclose(
        level.alpha * PEAKS.x0(x, level) + level.sigma * PEAKS.epsilon(x, level), x, rtol=1e-12
    )


def test_samples_have_the_mixture_moments():
    x = PEAKS.sample(200_000, generator=torch.Generator().manual_seed(0))
    mean = (PEAKS.weights.unsqueeze(1) * PEAKS.means).sum(0)
    away = PEAKS.means - mean
    covariance = (
        PEAKS.weights.reshape(-1, 1, 1) * (PEAKS.covariances + away.unsqueeze(2) * away.unsqueeze(1))
    ).sum(0)
    assert torch.allclose(x.mean(0), mean, atol=0.01)
    assert torch.allclose(x.T.cov(), covariance, atol=0.02)
    # the exact denoiser is the best guess: its error is orthogonal to functions of x_t
    level = stable_diffusion().level(300)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = add_noise(x, noise, level)
    error = x - PEAKS.x0(x_t, level)
    for probe in (torch.ones_like(x_t), x_t, torch.tanh(3 * x_t)):
        assert float((error * probe).mean(0).abs().max()) < 0.01


def test_bad_mixtures_are_refused():
    means, covariances = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
    with pytest.raises(InputError, match="sum to 1"):
        GaussianMixture(torch.tensor([0.5, 0.6]), means, covariances)
    with pytest.raises(InputError, match=r"weights must be \(2,\)"):
        GaussianMixture(torch.ones(3) / 3, means, covariances)


def test_error_measures():
    assert convergence_order([10, 20, 40], [1.0, 0.25, 0.0625]) == pytest.approx(2)
    assert max_relative_error(torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0])) == pytest.approx(
        0.05, rel=1e-5
    )
