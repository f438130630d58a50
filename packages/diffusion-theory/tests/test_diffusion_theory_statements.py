"""Samplers, guidance, estimators and rewards against the numbers that closed forms give."""

import math

import pytest
import torch
from noiseworks.core.closed_form import gaussian
from noiseworks.core.errors import InputError
from noiseworks.diffusion_theory.diagnosis import diagnose
from noiseworks.diffusion_theory.estimate import (
    fit_ridge,
    leading_subspace,
    linear_score_error,
    subspace_error,
    subspace_error_expected,
    two_nearest_dimension,
)
from noiseworks.diffusion_theory.experiments import run
from noiseworks.diffusion_theory.guidance import LineMixture, guided, reward_pull, splitting_threshold
from noiseworks.diffusion_theory.laws import Cube, Empirical, Mixture, Subspace, draw, random_basis, standard
from noiseworks.diffusion_theory.measures import fit_slope, off_support_ratio, score_error, sliced_w1
from noiseworks.diffusion_theory.options import SIZES, Diagnosis
from noiseworks.diffusion_theory.process import decaying_times, level, uniform_times
from noiseworks.diffusion_theory.reports import Check, Report
from noiseworks.diffusion_theory.reward import RewardDirected, conditional, expected_gap, ridge
from noiseworks.diffusion_theory.samplers import gaussian_variance, integrate, marginal_variance

D = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("v", "kind", "errors"),
    [
        (0.25, "em", (0.082096, 0.039623, 0.019356, 0.009553, 0.004744)),
        (0.25, "euler", (0.044524, 0.022216, 0.011093, 0.005563, 0.002809)),
        (0.25, "exponential", (0.091169, 0.042924, 0.020743, 0.010187, 0.005047)),
        (4.0, "em", (-0.051267, -0.026302, -0.013323, -0.006706, -0.003365)),
        (4.0, "euler", (-0.081819, -0.042510, -0.022044, -0.011598, -0.006320)),
        (4.0, "exponential", (0.021474, 0.010337, 0.005069, 0.002510, 0.001248)),
    ],
)
def test_sampler_bias_is_the_recursion_s(v, kind, errors):
    for steps, error in zip((50, 100, 200, 400, 800), errors, strict=True):
        found = gaussian_variance(torch.tensor([v]), uniform_times(8.0, 0.0, steps), kind)
        assert float(found.sqrt()) - math.sqrt(v) == pytest.approx(error, abs=2e-6)


@pytest.mark.parametrize("kind", ["em", "exponential", "euler", "heun", "ddim"])
def test_samplers_have_the_variance_of_the_recursion(kind):
    times = decaying_times(5.0, 0.01, 12)
    x = torch.randn(20_000, 1, dtype=D, generator=generator())
    x = integrate(lambda x, t: -x / marginal_variance(torch.tensor(4.0), t), x, times, kind, generator(1))
    expected = float(gaussian_variance(torch.tensor([4.0]), times, kind))
    assert float(x.var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / 20_000))
    with pytest.raises(InputError, match="kind"):
        integrate(lambda x, t: x, x, times, "rk9")


def test_guided_flow_has_the_known_moments():
    pair = LineMixture(torch.tensor([-1.0, 1.0], dtype=D), 1)
    eta = torch.tensor([0.0, 1.0, 3.0, 7.0], dtype=D)
    grid = torch.linspace(1 / 4000, 1 - 1 / 4000, 2000, dtype=D)
    start = torch.special.ndtri(grid)  # a quadrature of N(0, 1)
    ends, stretch = pair.run(start, uniform_times(8.0, 0.0, 4000), eta)
    assert ends.mean(0).tolist() == pytest.approx([0.98168, 1.584793, 2.305616, 3.188897], abs=3e-3)
    assert ends.std(0).tolist() == pytest.approx([0.99997, 0.758800, 0.587856, 0.488121], abs=3e-3)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + stretch.mean(0)
    assert entropy.tolist() == pytest.approx([1.418939, 1.133351, 0.854424, 0.664123], abs=3e-3)
    confidence = pair.log_posterior(ends, 0.0).exp().mean(0)
    assert confidence.tolist() == pytest.approx([0.771061, 0.916989, 0.983247, 0.997493], abs=2e-3)


def test_pull_is_the_derivative_of_the_posterior():
    triple = LineMixture(torch.tensor([-2.0, 0.0, 2.0], dtype=D), 2)
    x = torch.linspace(-2, 2, 5, dtype=D, requires_grad=True)
    (first,) = torch.autograd.grad(triple.log_posterior(x, 0.7).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    force, slope = triple.pull(x.detach(), 0.7)
    torch.testing.assert_close(force, first.detach(), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(slope, second, atol=1e-9, rtol=1e-9)
    assert splitting_threshold(2.0, 0.02) == pytest.approx(99.5 / 0.852056, rel=1e-5)
    assert 99.5 / splitting_threshold(1.711, 0.02) == pytest.approx(0.926111, abs=1e-6)
    for other in (1.7, 1.72):
        assert splitting_threshold(other, 0.02) > splitting_threshold(1.711, 0.02)


def test_strong_guidance_in_large_steps_splits_the_centre():
    triple, g, count = LineMixture(torch.tensor([-2.0, 0.0, 2.0], dtype=D), 1), generator(), 1000
    left = iter([1.0] * 399 + [0.0])  # the facts are of ends without the last step's noise
    eta = torch.tensor([0.0, 5.0, 20.0, 60.0, 150.0], dtype=D)
    start = torch.randn(count, dtype=D, generator=g)
    ends, _ = triple.run(
        start,
        uniform_times(8.0, 0.0, 400),
        eta,
        lambda: next(left) * torch.randn(count, 1, dtype=D, generator=g),
    )
    assert ends.std(0).tolist() == pytest.approx((0.993, 0.291, 0.117, 0.008, 2.93), rel=0.1, abs=0.006)
    far = ends[:, -1]
    assert float((far**4).mean() / (far**2).mean() ** 2) == pytest.approx(1.01, abs=0.02)


@pytest.mark.parametrize(
    ("eta", "variance", "tilted", "mean"),
    [(1.0, 0.0625, 0.142857, 1.37893), (3.0, 0.00390625, 0.0769231, None)],
)
def test_guidance_of_a_gaussian_is_not_the_tilted_law(eta, variance, tilted, mean):
    v, one = 0.25, torch.ones(1, dtype=D)
    narrow, wide = Mixture(gaussian(one, v * one[:, None])), Mixture(gaussian(0 * one, one[:, None]))
    starts = torch.tensor([[0.0], [1.0]], dtype=D)  # the flow is affine
    ends = integrate(guided(narrow.score, wide.score, eta), starts, decaying_times(12.0, 1e-6, 300), "heun")
    assert float((ends[1] - ends[0]) ** 2) == pytest.approx(variance, rel=0.01)
    assert v ** (1 + eta) == variance
    assert 1 / ((1 + eta) / v - eta) == pytest.approx(tilted, abs=1e-6)
    assert variance < tilted
    if mean is not None:
        assert float(ends[0]) == pytest.approx(mean, abs=2e-3)


def test_the_kernels_rate_flattens_with_dimension():
    known = {
        (0.5, 1): -0.96,
        (0.5, 2): -1.00,
        (0.5, 4): -0.84,
        (0.5, 8): -0.65,
        (0.1, 2): -0.90,
        (0.1, 4): -0.76,
        (0.1, 8): -0.36,
    }
    for (t, d), slope in known.items():
        law, errors, repeats = standard(d), [], 32 // d  # the error has about d degrees of freedom
        for n in (250, 4000):
            found = []
            for i in range(repeats):
                points = Empirical(law.sample(n, generator(1000 * d + n + i)))
                found.append(score_error(points.score, law, t, 200, generator(i))[0])
            errors.append(sum(found))
        assert math.log(errors[1] / errors[0]) / math.log(16) == pytest.approx(slope, abs=0.15), (t, d)


def test_subspace_is_found_at_the_rate_of_the_formula():
    basis, t = random_basis(32, 4, generator()), 0.2
    formula = [subspace_error_expected(n, 4, 32, t) for n in (200, 800, 3200, 12_800)]
    assert formula == pytest.approx([0.303, 0.0757, 0.0189, 0.00473], rel=2e-3)
    for n in (3200, 12_800):
        found = [
            subspace_error(leading_subspace(draw(Subspace(basis, standard(4)), n, t, generator(i)), 4), basis)
            for i in range(6)
        ]
        assert sum(found) / 6 == pytest.approx(subspace_error_expected(n, 4, 32, t), rel=0.15)
    samples = draw(Subspace(basis, standard(4)), 3200, t, generator(9))
    true = Subspace(basis, standard(4))
    V = leading_subspace(samples, 4)
    inside, h = torch.linalg.inv(V.T @ (samples.T @ samples / 3200) @ V), level(t).sigma ** 2
    error, spread = score_error(
        lambda x, t: -(x @ V) @ inside @ V.T - (x - x @ V @ V.T) / h, true, t, 20_000, generator(10)
    )
    assert linear_score_error(samples, basis, t) == pytest.approx(error, abs=4 * spread)


def test_ridge_score_approaches_the_true_one():
    law = Cube(2)
    errors = []
    for n in (100, 3000):
        found = fit_ridge(law.sample(n, generator(n)), 0.3, generator(1))
        errors.append(score_error(found, law, 0.3, 2000, generator(2))[0])
    size = float(law.score(draw(law, 2000, 0.3, generator(2)), 0.3).square().sum(1).mean())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.02 * size


def test_two_nearest_neighbours_see_the_latent_dimension():
    for d in (1, 3):
        points = Subspace(random_basis(12, d, generator(d)), Cube(d)).sample(2000, generator(d + 5))
        assert two_nearest_dimension(points) == pytest.approx(d, rel=0.12)
    with pytest.raises(InputError, match="distinct"):
        two_nearest_dimension(torch.ones(10, 2, dtype=D))


def test_conditional_law_and_gap_are_the_closed_form():
    theta = torch.tensor([0.6, 0.8], dtype=D)
    covariance = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=D)
    mean, spread = conditional(covariance, theta, 3.0, 0.1)
    total = float(theta @ covariance @ theta) + 0.01
    torch.testing.assert_close(mean, covariance @ theta * 3 / total)
    assert float(theta @ spread @ theta) == pytest.approx(total - 0.01 - (total - 0.01) ** 2 / total)
    assert float(expected_gap(torch.eye(2, dtype=D), theta, theta, 5.0, 0.1)) == pytest.approx(
        5 * 0.01 / 1.01
    )
    x, y = (
        torch.randn(30, 2, dtype=D, generator=generator()),
        torch.randn(30, dtype=D, generator=generator(1)),
    )
    expected = torch.linalg.solve(x.T @ x + torch.eye(2, dtype=D), x.T @ y)
    torch.testing.assert_close(ridge(x, y), expected)


def test_the_gap_of_proposals_falls_with_labels_and_grows_with_the_target():
    g, eye = generator(), torch.eye(16, dtype=D)
    theta = torch.nn.functional.normalize(torch.randn(16, dtype=D, generator=g), dim=0)
    wanted = {
        50: (0.085, 0.163, 0.345, 0.505),
        200: (0.028, 0.059, 0.072, 0.173),
        1000: (0.014, 0.036, 0.043, 0.093),
    }
    for n, known in wanted.items():
        x = torch.randn(200, n, 16, dtype=D, generator=g)
        y = x @ theta + 0.5 * torch.randn(200, n, dtype=D, generator=g)
        gaps = [float(expected_gap(eye, ridge(x, y), theta, a, 0.1).mean()) for a in (1.0, 2.0, 4.0, 8.0)]
        assert gaps == pytest.approx([a * gaps[0] for a in (1, 2, 4, 8)])
        assert gaps[0] == pytest.approx(known[0], rel=0.25)
        assert gaps == pytest.approx(known, rel=0.6)  # means of 50 repeats, each target's of draws of its own


def test_proposals_reach_the_target_and_stay_on_the_subspace():
    basis, g = random_basis(10, 3, generator()), generator(1)
    x = Subspace(basis, standard(3)).sample(400, g) + 1.0
    theta = basis @ torch.tensor([1.0, -1.0, 0.5], dtype=D)
    y = x @ theta + 0.05 * torch.randn(400, dtype=D, generator=g)
    fitted = RewardDirected.fit(x[:200], y[:200], x, d=3)
    target = float(y.mean()) + 4
    made = fitted.propose(target, 500, 0.0, g)
    assert float((made @ theta).mean()) == pytest.approx(target, abs=0.1)
    assert float(off_support_ratio(made - x.mean(0), basis).max()) < 1e-6
    assert fitted.shift(target) > 1.5
    with pytest.raises(InputError, match="must fit"):
        RewardDirected.fit(x, y[:3], x, d=3)


def test_look_ahead_pull_stays_in_the_subspace_and_naive_does_not():
    basis, g = random_basis(8, 2, generator()), generator(1)
    law = Subspace(basis, standard(2))
    x, gradient = torch.randn(5, 8, dtype=D, generator=g), torch.randn(5, 8, dtype=D, generator=g)
    value, t = torch.full((5,), 2.0, dtype=D), 0.4
    plain, alpha, h = law.score(x, t), float(level(t).alpha), float(level(t).sigma) ** 2
    ahead = reward_pull(law.score, gradient, value, "lookahead")(x, t) - plain
    inside = gradient @ basis @ basis.T  # for N(0, I) latents the denoiser is a A Aᵀ x
    short = value - alpha * (inside * x).sum(1)
    push = alpha * inside
    beta = alpha**2 / (alpha**2 * 0.01 + h * push.square().sum(1))
    torch.testing.assert_close(ahead, (beta * short)[:, None] * push, atol=1e-9, rtol=1e-9)
    naive = reward_pull(law.score, gradient, value, "naive")(x, t) - plain
    beta = alpha / (0.01 + h * gradient.square().sum(1))
    torch.testing.assert_close(naive, (beta * short)[:, None] * gradient, atol=1e-9, rtol=1e-9)


def test_slopes_and_distances_are_what_they_say():
    found = fit_slope((1, 10, 100), [[2.0, 4.0], [0.2, 0.4], [0.02, 0.04]])
    assert (found.value, found.r2) == (pytest.approx(-1), pytest.approx(1))
    with pytest.raises(InputError, match="positive"):
        fit_slope((1, 2), [[1.0], [0.0]])
    x = torch.randn(400, 3, dtype=D, generator=generator())
    away = torch.tensor([3.0, 0.0, 0.0], dtype=D)
    assert sliced_w1(x, x + away, generator(1), 4000) == pytest.approx(
        3 / 2, rel=0.05
    )  # E|u_1| = 1/2 in 3 dimensions
    with pytest.raises(InputError, match="one shape"):
        sliced_w1(x, x[:3], generator())


def test_verdicts_follow_the_checks():
    def verdict(*checks):
        return Report("E", "", checks).verdict

    assert verdict(Check("a", 0.1, 0.2), Check("b", 1.0, 1.0)) == "holds"
    assert verdict(Check("a", 0.3, 0.2, 0.15)) == "not resolved at this size"
    assert verdict(Check("a", 0.3, 0.2, 0.05), Check("b", 0.0, 1.0)) == "violates"
    assert verdict(Check("a", math.nan, 0.2)) == "violates"


@pytest.mark.parametrize("name", ["E1", "E3", "E5"])
def test_rules_hold_as_stated_and_break_without_their_premise(name):
    assert run(name, SIZES["smoke"], 3).verdict == "holds"
    assert run(name, SIZES["smoke"], 3, control=True).verdict == "violates"


def test_diagnosis_finds_the_plane_and_what_memorises():
    basis = random_basis(10, 2, generator())
    data = 5 + 3 * Subspace(basis, Cube(2)).sample(1200, generator(1))
    found, curves = diagnose(data.float(), Diagnosis(largest=800))
    assert found["intrinsic dimension"] == pytest.approx(2, rel=0.2)
    assert found["components for 99 % of the variance"] == 2
    assert found["score error bound, exponent of n"]["intrinsic"] == pytest.approx(-2 / 7, rel=0.1)
    assert curves["steps"]["heun"][1][-1] < curves["steps"]["ddim"][1][-1] < curves["steps"]["em"][1][-1]
    assert found["steps that are enough"]["ddim"] <= found["steps that are enough"]["em"]
    assert 0 < found["memorising below time"] < 0.1
    atoms = curves["memorisation"]["points that share a denoised one (median)"][1]
    assert atoms[0] < 2 < 100 < atoms[-1]
    assert found["nearest training point of a held-out point"] > 0
    assert Empirical(data).score(data[:2], 1.0).isfinite().all()
