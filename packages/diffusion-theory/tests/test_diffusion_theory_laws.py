"""Exact laws against printed numbers, automatic differentiation, quadrature and brute force."""

import math
from itertools import pairwise

import pytest
import torch
from noiseworks.core.closed_form import GaussianMixture, gaussian
from noiseworks.core.errors import InputError
from noiseworks.diffusion_theory.guidance import condition, guided
from noiseworks.diffusion_theory.laws import (
    CHUNK,
    Cube,
    Empirical,
    Mixture,
    Subspace,
    draw,
    posterior_mean,
    random_basis,
    standard,
)
from noiseworks.diffusion_theory.process import decaying_times, initial_divergence, level, uniform_times

D = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture():
    means = torch.tensor([[-1.0, 0.0], [2.0, 1.0]], dtype=D)
    return Mixture(
        GaussianMixture(
            torch.tensor([0.3, 0.7], dtype=D), means, 0.25 * torch.eye(2, dtype=D).expand(2, 2, 2)
        )
    )


def laws():
    basis = random_basis(4, 2, generator())
    points = torch.randn(7, 2, dtype=D, generator=generator())
    return {
        "mixture": (mixture(), 2),
        "cube": (Cube(2), 2),
        "subspace": (Subspace(basis, mixture()), 4),
        "empirical": (Empirical(points), 2),
    }


def test_levels_are_exact():
    at = level(torch.tensor([0.5, 1.0, 1e-8], dtype=D))
    assert at.alpha[:2].tolist() == pytest.approx([0.778801, 0.606531], abs=1e-6)
    assert (at.sigma**2).tolist()[:2] == pytest.approx([0.393469, 0.632121], abs=1e-6)
    assert float(at.sigma[2] ** 2) == pytest.approx(1e-8 - 5e-17, rel=1e-12)
    with pytest.raises(InputError, match="t_0"):
        level(0.0)


def test_start_from_noise_costs_what_the_closed_form_says():
    for T, cost in ((2, 2.764e-3), (4, 4.761e-5), (8, 1.583e-8)):
        assert initial_divergence(torch.tensor([0.25]), 0.0, T) == pytest.approx(cost, rel=1e-3)
    assert initial_divergence(torch.ones(3), 2.0, 1.0) == pytest.approx(math.exp(-1))


def test_grids_fall_from_horizon_to_stop():
    times = decaying_times(8.0, 1e-4, 50)
    assert (times[0], times[-1]) == (8.0, 1e-4)
    steps = -times.diff()
    assert (steps > 0).all()
    low = times[:-1] < 1  # a step is of the order of the time that is left
    assert (steps[low] / times[:-1][low]).std() < 1e-6
    for bad in ((1.0, 1.0, 5), (1.0, -0.1, 5), (math.inf, 0.1, 5), (1.0, 0.1, 0)):
        with pytest.raises(InputError):
            uniform_times(*bad)


def test_mixture_has_the_known_values():
    x, law = torch.tensor([[0.5, -0.2]], dtype=D), mixture()
    assert law.score(x, 0.5)[0].tolist() == pytest.approx([0.301038, 1.249245], abs=1e-6)
    assert float(law.log_prob(x, 0.5)) == pytest.approx(-3.010566, abs=1e-6)
    assert posterior_mean(law, x, 0.5)[0].tolist() == pytest.approx([0.794104, 0.374344], abs=1e-6)
    parts = [float(condition(law, k).log_prob(x, 0.5) - law.log_prob(x, 0.5)) for k in (0, 1)]
    shares = [weight * math.exp(part) for weight, part in zip((0.3, 0.7), parts, strict=True)]
    assert shares == pytest.approx([0.382428, 0.617572], abs=1e-6)


def test_the_flow_carries_the_density():
    """log p at t_0 is log p at T plus the integral of the flow's divergence, by Runge and Kutta."""
    law, x = mixture(), torch.tensor([[-1.2, 0.3], [1.5, 0.9], [0.2, 0.2]], dtype=D)

    def flow(x, t):
        x = x.detach().requires_grad_(True)
        s = law.score(x, t)
        spread = sum(torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        return -(x + s).detach() / 2, -(2 + spread) / 2

    begun, grown = law.log_prob(x, 0.01), torch.zeros(3, dtype=D)
    for t, later in pairwise(torch.logspace(-2, math.log10(6), 201, dtype=D).tolist()):
        step, middle = later - t, (t + later) / 2
        first = flow(x, t)
        second = flow(x + step / 2 * first[0], middle)
        third = flow(x + step / 2 * second[0], middle)
        last = flow(x + step * third[0], later)
        slopes = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(first, second, third, last, strict=True)]
        x, grown = x + step * slopes[0], grown + step * slopes[1]
    torch.testing.assert_close(law.log_prob(x, 6.0) + grown, begun, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mixture", "cube", "subspace", "empirical"])
@pytest.mark.parametrize("t", [0.05, 0.5, 3.0])
def test_score_is_the_gradient_of_the_log_density(name, t):
    law, d = laws()[name]
    x = 1.5 * torch.randn(6, d, dtype=D, generator=generator(1))
    x.requires_grad_(True)
    (found,) = torch.autograd.grad(law.log_prob(x, t).sum(), x)
    torch.testing.assert_close(law.score(x.detach(), t), found, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["mixture", "cube"])
def test_density_integrates_to_one_and_tweedie_is_the_posterior_mean(name):
    law, _ = laws()[name]
    axis = torch.linspace(-8, 8, 401, dtype=D)
    grid = torch.cartesian_prod(axis, axis)
    assert float(law.log_prob(grid, 0.3).exp().sum()) * 0.04**2 == pytest.approx(1, abs=1e-5)
    if name == "cube":
        alpha, sigma = level(0.3)
        x = torch.tensor([[0.4, -1.2]], dtype=D)
        inside = (2 * (torch.arange(20_000, dtype=D) + 0.5) / 20_000 - 1) * law.half
        weight = torch.exp(-((x.T - alpha * inside) ** 2) / (2 * sigma**2))
        expected = (weight * inside).sum(1) / weight.sum(1)
        torch.testing.assert_close(posterior_mean(law, x, 0.3)[0], expected, atol=1e-5, rtol=0)


def test_cube_keeps_its_score_far_outside():
    score = Cube(1).score(torch.tensor([[12.0], [-12.0]], dtype=D), 0.01)
    assert score.isfinite().all()
    alpha, sigma = level(0.01)
    expected = -(12 - alpha * math.sqrt(3)) / sigma**2
    assert float(score[0]) == pytest.approx(float(expected), rel=0.01)
    assert float(score[1]) == pytest.approx(-float(score[0]))


def test_mean_score_is_zero_and_its_square_is_minus_its_divergence():
    law = mixture()
    x = draw(law, 40_000, 0.5, generator(2)).requires_grad_(True)
    s = law.score(x, 0.5)
    divergence = sum(torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    assert s.mean(0).abs().max() < 4 * float(s.std()) / 200
    square = s.square().sum(1)
    assert abs(float((square + divergence).mean())) < 4 * float((square + divergence).std()) / 200


def test_subspace_score_equals_the_direct_formula():
    basis = random_basis(5, 2, generator(3))
    small = 1e-9  # a full covariance that is almost on the plane
    direct = Mixture(gaussian(torch.zeros(5, dtype=D), basis @ basis.T + small * torch.eye(5, dtype=D)))
    x = torch.randn(4, 5, dtype=D, generator=generator(4))
    torch.testing.assert_close(
        Subspace(basis, standard(2)).score(x, 0.2), direct.score(x, 0.2), atol=1e-6, rtol=1e-6
    )
    with pytest.raises(InputError, match="orthonormal"):
        Subspace(2 * basis, standard(2))


def test_streamed_score_equals_the_broadcast():
    points = torch.randn(2 * CHUNK + 5, 3, dtype=D, generator=generator(5))
    x, t = 3 * torch.randn(9, 3, dtype=D, generator=generator(6)), 0.02
    alpha, sigma = level(t)
    logits = -((x[:, None] - alpha * points) ** 2).sum(-1) / (2 * sigma**2)
    weights = torch.softmax(logits, 1)
    law = Empirical(points)
    torch.testing.assert_close(
        law.score(x, t), (alpha * weights @ points - x) / sigma**2, atol=1e-7, rtol=1e-9
    )
    torch.testing.assert_close(law.effective_atoms(x, t), 1 / (weights**2).sum(1), atol=0, rtol=1e-8)
    one = Empirical(points[:1])
    torch.testing.assert_close(one.score(x, t), (alpha * points[:1] - x) / sigma**2)
    for bad in (points[:0], points * math.nan, points[0]):
        with pytest.raises(InputError, match="points"):
            Empirical(bad)


def test_guidance_strengths_have_their_limits():
    law = mixture()
    one = condition(law, 1)
    x = torch.randn(3, 2, dtype=D, generator=generator(7))
    s, c = law.score(x, 0.4), one.score(x, 0.4)
    torch.testing.assert_close(guided(one.score, law.score, -1)(x, 0.4), s)
    torch.testing.assert_close(guided(one.score, law.score, 0)(x, 0.4), c)
    w = 3.0  # the other weight: s + w (c - s)
    torch.testing.assert_close(guided(one.score, law.score, w - 1)(x, 0.4), s + w * (c - s))
    with pytest.raises(InputError, match="eta"):
        guided(one.score, law.score, -1.5)
