"""Reverse steps: literal values, exact marginals, log-probabilities and refusals."""

import itertools
import math

import pytest
import torch
import torch._dynamo.testing
from noiseworks.core import steps
from noiseworks.core.closed_form import ancestral_variance, ddim_gain, flow_gain, gaussian
from noiseworks.core.errors import InputError
from noiseworks.core.grids import append_zero, karras_sigmas, timesteps, with_clean_end
from noiseworks.core.params import convert, to_x0
from noiseworks.core.schedules import Level, flow, stable_diffusion
from noiseworks.core.testing import convergence_order, run

SD = stable_diffusion()
X = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
EPSILON = torch.tensor([[0.3, -0.1]], dtype=torch.float64)
DATA_STD = 0.5


def sd_levels(n):
    return [SD.level(int(t)) for t in with_clean_end(timesteps("trailing", 1000, n))]


def test_ddim_literals():
    level, next_level = SD.level(781), SD.level(761)
    x0 = to_x0(EPSILON, X, level, "epsilon")
    assert x0[0].tolist() == pytest.approx([3.3895593, -9.1249552], rel=1e-6)
    plain = steps.ddim_step(X, x0, level, next_level)
    assert plain.sample[0].tolist() == pytest.approx([1.0603900, -2.1654415], abs=1e-6)
    assert float(plain.std) == 0
    noisy = steps.ddim_step(X, x0, level, next_level, eta=1.0, noise=torch.ones_like(X))
    assert float(noisy.std) == pytest.approx(0.3907503, abs=1e-6)
    assert noisy.mean[0].tolist() == pytest.approx([1.0358443, -2.1572595], abs=1e-6)
    assert torch.allclose(noisy.sample, noisy.mean + noisy.std)


def test_ddpm_literals():
    level, next_level = SD.level(500), SD.level(499)
    x0 = to_x0(EPSILON, X, level, "epsilon")
    small = steps.ddpm_step(X, x0, level, next_level)
    assert small.mean[0].tolist() == pytest.approx([1.0007141, -2.0042651], abs=1e-6)
    assert float(small.std**2) == pytest.approx(0.0048060580, abs=1e-9)
    large = steps.ddpm_step(X, x0, level, next_level, variance="large")
    assert float(large.std**2) == pytest.approx(0.0048149535, abs=1e-9)
    for share, wanted in ((-1.0, small), (1.0, large)):
        learned = torch.full_like(X, share)
        step = steps.ddpm_step(X, x0, level, next_level, variance="learned", learned=learned)
        assert torch.allclose(step.std, wanted.std.expand(1, 2))


def test_euler_literals():
    # the first of five `linspace` steps: from index 999 to 749.25, where Euler interpolates σ itself
    sigma, first, second = SD.level(torch.tensor([999, 749, 750])).sigma_ve
    x = X * 14.6146469
    step = steps.euler_step(x, x - sigma * EPSILON, sigma, 0.75 * first + 0.25 * second)
    assert step.sample[0].tolist() == pytest.approx([11.4560795, -28.1764393], rel=1e-6)


def test_flow_step_goes_along_the_velocity():
    x, velocity = torch.randn(3, 4), torch.randn(3, 4)
    step = steps.flow_euler_step(x, velocity, 0.7, 0.3)
    assert torch.allclose(step.sample, x - 0.4 * velocity)
    assert torch.allclose(step.x0, x - 0.7 * velocity)


def test_ddim_with_eta_one_has_the_ddpm_posterior():
    generator = torch.Generator().manual_seed(0)
    x, x0 = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    level, next_level = SD.level(700), SD.level(450)
    ddim = steps.ddim_step(x, x0, level, next_level, eta=1.0)
    ddpm = steps.ddpm_step(x, x0, level, next_level)
    assert torch.allclose(ddim.mean, ddpm.mean, rtol=1e-10)
    assert torch.allclose(ddim.std, ddpm.std, rtol=1e-10)


def test_the_last_step_returns_x0_without_noise():
    x, x0 = torch.randn(2, 3), torch.randn(2, 3)
    level, clean = SD.level(20), SD.level(-1)
    for step in (
        steps.ddim_step(x, x0, level, clean, eta=1.0, noise=torch.ones_like(x)),
        steps.ddpm_step(x, x0, level, clean, noise=torch.ones_like(x)),
        steps.euler_step(x, x0, 0.3, 0.0),
        steps.euler_ancestral_step(x, x0, torch.tensor(0.3), torch.tensor(0.0), noise=torch.ones_like(x)),
    ):
        assert torch.allclose(step.sample, x0, atol=1e-6)
        assert float(step.std) == 0


def test_clipped_x0_can_keep_the_predicted_noise():
    level, next_level = SD.level(781), SD.level(761)
    clipped = to_x0(EPSILON, X, level, "epsilon").clamp(-1, 1)
    kept = steps.ddim_step(X, clipped, level, next_level, epsilon=EPSILON)
    assert torch.allclose(kept.mean, next_level.alpha * clipped + next_level.sigma * EPSILON)
    assert not torch.allclose(kept.mean, steps.ddim_step(X, clipped, level, next_level).mean)


def test_per_token_levels_step_each_token_as_if_alone():
    x, x0, noise = (torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(3))
    t, s = torch.tensor([[999, 500, 20], [300, 200, 100]]), torch.tensor([[500, 400, -1], [200, -1, 0]])
    together = steps.ddim_step(x, x0, SD.level(t), SD.level(s), eta=0.5, noise=noise)
    for b in range(2):
        for i in range(3):
            pair = SD.level(int(t[b, i])), SD.level(int(s[b, i]))
            alone = steps.ddim_step(x[b, i], x0[b, i], *pair, eta=0.5, noise=noise[b, i])
            assert torch.allclose(together.sample[b, i], alone.sample, rtol=1e-12)


def test_half_precision_samples_are_stepped_in_float32():
    x = torch.randn(1000).bfloat16()
    level, next_level = SD.level(30), SD.level(10)
    step = steps.ddim_step(x, to_x0(torch.randn(1000), x, level, "epsilon"), level, next_level)
    assert step.sample.dtype == torch.bfloat16
    assert step.mean.dtype == torch.float32


def test_ancestral_euler_keeps_the_noise_level():
    sigma, below = torch.tensor(5.0).double(), torch.tensor(2.0).double()
    generator = torch.Generator().manual_seed(0)
    x = 5 * torch.randn(200_000, dtype=torch.float64, generator=generator)
    noise = torch.randn(200_000, dtype=torch.float64, generator=generator)
    step = steps.euler_ancestral_step(x, torch.zeros_like(x), sigma, below, noise=noise)
    assert float(step.sample.std()) == pytest.approx(2.0, rel=0.01)
    assert float(step.std) == pytest.approx(2 * math.sqrt(21) / 5, rel=1e-12)
    still = steps.euler_ancestral_step(x, torch.zeros_like(x), sigma, below, eta=0.0)
    assert torch.allclose(still.sample, steps.euler_step(x, torch.zeros_like(x), sigma, below).sample)


def test_churn_adds_exactly_the_missing_noise():
    x, noise = torch.zeros(3).double(), torch.ones(3).double()
    raised, sigma = steps.churn(x, torch.tensor(2.0).double(), 0.5, noise)
    assert float(sigma) == 3
    assert raised.tolist() == pytest.approx([math.sqrt(5)] * 3)


# One exact-score trajectory on N(0, DATA_STD²) is linear, so each solver's error is known in closed form.


def exact_x0(x, level):
    return level.alpha * DATA_STD**2 / (level.alpha**2 * DATA_STD**2 + level.sigma**2) * x


def test_ddim_runs_follow_their_closed_form_gain():
    levels = sd_levels(25)
    end = run(torch.ones(1).double(), levels, lambda x, a, b: steps.ddim_step(x, exact_x0(x, a), a, b).sample)
    gain = torch.stack([ddim_gain(DATA_STD, a, b) for a, b in itertools.pairwise(levels)]).prod()
    assert float(end) == pytest.approx(float(gain), rel=1e-12)


def ve_error(n, step):
    sigmas = append_zero(karras_sigmas(n, 0.02, 10.0))[:-1]
    levels = [Level(torch.ones_like(s), s) for s in sigmas]
    end = run(torch.ones(1).double(), levels, step)
    return abs(float(end / flow_gain(DATA_STD, levels[0], levels[-1])) - 1)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun"])
def test_solver_orders_in_the_exploding_view(name):
    def step(x, level, next_level):
        x0 = exact_x0(x, level)
        if name == "ddim":
            return steps.ddim_step(x, x0, level, next_level).sample
        if name == "euler":
            return steps.euler_step(x, x0, level.sigma, next_level.sigma).sample
        return steps.heun_step(
            x, x0, level.sigma, next_level.sigma, lambda y, s: exact_x0(y, Level(torch.ones_like(s), s))
        ).sample

    counts = [40, 80, 160]
    order = convergence_order(counts, [ve_error(n, step) for n in counts])
    assert order == pytest.approx(2 if name == "heun" else 1, abs=0.15)


@pytest.mark.parametrize(("name", "wanted"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_flow_solver_orders(name, wanted):
    path = flow()

    def velocity(x, t):
        level = path.level(t)
        return convert(exact_x0(x, level), x, level, "sample", "flow_prediction")

    def error(n):
        x = torch.ones(1).double()
        times = torch.linspace(0.99, 0.01, n + 1, dtype=torch.float64)
        for t, s in itertools.pairwise(times):
            u = velocity(x, t)
            if name == "euler":
                x = steps.flow_euler_step(x, u, t, s).sample
            elif name == "heun":
                x = steps.flow_heun_step(x, u, t, s, velocity).sample
            else:
                x = steps.flow_rk4_step(x, u, t, s, velocity).sample
        return abs(float(x / flow_gain(DATA_STD, path.level(0.99), path.level(0.01))) - 1)

    counts = [80, 160, 320]
    assert convergence_order(counts, [error(n) for n in counts]) == pytest.approx(wanted, abs=0.1)


def test_ancestral_runs_have_their_closed_form_variance():
    levels = sd_levels(10)[:-1]
    generator = torch.Generator().manual_seed(0)
    first = levels[0]
    spread = (first.alpha**2 * DATA_STD**2 + first.sigma**2).sqrt()
    x = spread * torch.randn(100_000, dtype=torch.float64, generator=generator)
    for level, low in itertools.pairwise(levels):
        noise = torch.randn(100_000, dtype=torch.float64, generator=generator)
        x = steps.ddpm_step(x, exact_x0(x, level), level, low, noise=noise).sample
    assert float(x.var()) == pytest.approx(float(ancestral_variance(DATA_STD, levels)), rel=0.015)


def test_the_flow_sde_keeps_the_marginals_of_the_flow():
    # on Gaussian data, V ← gain² V + std² per step; many steps must end at the flow's own variance
    path, times = flow(), torch.linspace(0.95, 0.05, 1001, dtype=torch.float64)
    exact = lambda t: float(path.alpha(t) ** 2 * DATA_STD**2 + path.sigma(t) ** 2)  # noqa: E731
    V = exact(times[0])
    for t, s in itertools.pairwise(times):
        one = torch.ones(1, dtype=torch.float64)
        velocity = convert(exact_x0(one, path.level(t)), one, path.level(t), "sample", "flow_prediction")
        step = steps.flow_sde_step(one, velocity, t, s, noise_level=0.7)
        V = float(step.mean) ** 2 * V + float(step.std) ** 2
    assert pytest.approx(exact(times[-1]), rel=8e-3) == V


def test_the_flow_sde_without_noise_is_the_flow_and_is_finite_at_pure_noise():
    x, u = torch.randn(2, 3), torch.randn(2, 3)
    still = steps.flow_sde_step(x, u, 0.6, 0.5, noise_level=0.0, noise=torch.ones_like(x))
    assert torch.allclose(still.sample, steps.flow_euler_step(x, u, 0.6, 0.5).sample)
    start = steps.flow_sde_step(x, u, 1.0, 0.9, noise=torch.ones_like(x))
    assert bool(start.sample.isfinite().all())
    sigma = 0.7 * math.sqrt(0.6 / 0.4)
    assert float(steps.flow_sde_step(x, u, 0.6, 0.5).std) == pytest.approx(sigma * math.sqrt(0.1), rel=1e-5)


def test_log_prob_literal_and_reductions():
    value = steps.log_prob(torch.tensor([[0.1]]), torch.zeros(1, 1), torch.tensor([[0.2]]))
    assert float(value) == pytest.approx(0.5654994, abs=1e-7)
    sample, mean, std = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.rand(2, 1, 1) + 0.1
    total = torch.distributions.Normal(mean, std).log_prob(sample).sum((1, 2))
    assert torch.allclose(steps.log_prob(sample, mean, std, reduce="sum"), total, rtol=1e-5)
    assert torch.allclose(steps.log_prob(sample, mean, std), total / 12, rtol=1e-5)


def test_log_prob_needs_noise():
    x = torch.zeros(1, 2)
    with pytest.raises(InputError, match="std 0 has no density"):
        steps.log_prob(x, x, torch.zeros(1, 1))
    assert bool(steps.log_prob(x, x, torch.zeros(1, 1), min_std=0.1).isfinite().all())
    with pytest.raises(InputError, match="reduce must be one of"):
        steps.log_prob(x, x, torch.ones(1, 1), reduce="none")


def test_log_prob_of_a_ddim_step_has_the_gradient_of_its_mean():
    level, next_level = SD.level(500), SD.level(480)
    epsilon = EPSILON.clone().requires_grad_()
    x0 = to_x0(epsilon, X, level, "epsilon")
    step = steps.ddim_step(X, x0, level, next_level, eta=1.0, noise=torch.ones_like(X))
    value = steps.log_prob(step.sample.detach(), step.mean, step.std, reduce="sum")
    (gradient,) = torch.autograd.grad(value.sum(), epsilon)
    shift = 1e-6
    moved = steps.ddim_step(X, to_x0(EPSILON + shift, X, level, "epsilon"), level, next_level, eta=1.0)
    change = steps.log_prob(step.sample.detach(), moved.mean, moved.std, reduce="sum") - value.detach()
    assert float(change) == pytest.approx(float(gradient.sum()) * shift, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps.ddim_step(X, X, SD.level(10), SD.level(20)), "less noisy level"),
        (lambda: steps.ddim_step(X, X, SD.level(10), SD.level(10)), "less noisy level"),
        (lambda: steps.ddpm_step(X, X, SD.level(10), SD.level(20)), "less noisy level"),
        (
            lambda: steps.ddpm_step(X, X, SD.level(20), SD.level(10), variance="fixed"),
            "variance must be one of",
        ),
        (lambda: steps.ddpm_step(X, X, SD.level(20), SD.level(10), variance="learned"), "network's output"),
        (lambda: steps.churn(X, torch.tensor(1.0), -1.0, X), "gamma must be"),
        (lambda: steps.flow_sde_step(X, X, 0.5, 0.4, noise_level=-1.0), "noise_level must be"),
    ],
)
def test_bad_steps_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_steps_compile_without_graph_breaks_or_recompiles():
    def step(x, epsilon, noise, alpha, sigma, next_alpha, next_sigma):
        level, next_level = Level(alpha, sigma), Level(next_alpha, next_sigma)
        x0 = to_x0(epsilon, x, level, "epsilon")
        return steps.ddim_step(x, x0, level, next_level, eta=1.0, noise=noise).sample

    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for batch in (2, 5, 7):
        args = [torch.randn(batch, 3, 4) for _ in range(3)]
        levels = (*SD.level(torch.full((batch,), 700)), *SD.level(torch.full((batch,), 400)))
        assert torch.allclose(compiled(*args, *levels), step(*args, *levels), atol=1e-5)
    assert counter.frame_count == 1


def test_a_multivariate_gaussian_run_reaches_its_covariance():
    covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    data = gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), covariance)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 2, dtype=torch.float64, generator=generator)
    x = run(x, sd_levels(100), lambda x, a, b: steps.ddim_step(x, data.x0(x, a), a, b).sample)
    assert torch.allclose(x.T.cov(), covariance, atol=0.02)
    assert torch.allclose(x.mean(0), data.means[0], atol=0.08)
