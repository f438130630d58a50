"""EDM: sampling levels, training density, preconditioning and samplers against closed forms."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.schedules import Level
from noiseworks.core.solvers import dpmpp_1_step
from noiseworks.mode.dpm_solver import Leg, dpm_adaptive, fast_legs, order_step
from noiseworks.mode.edm import denoise, edm_loss, log_logistic_quantile, sample_sigmas, sampling_sigmas
from noiseworks.mode.policy import coefficients
from noiseworks.mode.samplers import ddim_step, evaluation_sigmas, lms_weights, sample

SIGMAS = [80, 22.819294, 6.509003, 1.856636, 0.529589, 0.151061, 0.043089, 0.012291, 0.003506, 0.001, 0]
SAMPLERS = ("ddim", "euler", "heun", "lms", "dpm2", "dpmpp-2m", "dpmpp-2s", "dpm-fast")
NOISY = ("dpm2-ancestral", "euler-ancestral", "dpmpp-sde", "dpmpp-2m-sde")


def test_the_ten_levels_are_even_in_log_sigma_from_80_to_a_thousandth():
    # The published table is float32.
    torch.testing.assert_close(
        sampling_sigmas(), torch.tensor(SIGMAS, dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("grid", ["exponential", "karras", "linear", "vp", "iddpm", "cosine"])
def test_every_grid_falls_within_the_ends_to_zero(grid):
    sigmas = sampling_sigmas(7, grid=grid)
    assert len(sigmas) == 8
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())
    assert sigmas[0] <= 80
    assert sigmas[-2] >= 0.001


def test_the_training_density_has_the_quantiles_of_a_cut_log_logistic():
    u = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
    expected = torch.tensor([0.001, 0.16667, 0.28867, 0.49998, 0.86596, 1.4997, 80], dtype=torch.float64)
    torch.testing.assert_close(log_logistic_quantile(u), expected, atol=0, rtol=3.1e-5)


@pytest.mark.parametrize(
    "density",
    [
        "log-logistic",
        "log-normal",
        "split-log-normal",
        "log-uniform",
        "uniform",
        "v-diffusion",
        "discrete",
    ],
)
def test_every_density_stays_within_the_ends_and_repeats_by_seed(density):
    one, two = (
        sample_sigmas(1000, density=density, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.dtype == torch.float64
    assert one.min() >= 0.001 - 1e-12
    assert one.max() <= 80 + 1e-9
    assert len(one.unique()) > 5


def test_the_split_density_has_a_deviation_on_each_side_of_its_median():
    draws = sample_sigmas(200_000, density="split-log-normal", generator=torch.Generator().manual_seed(0))
    log = draws.log() + 1.2
    below, above = log[log < 0], log[log >= 0]
    assert len(below) / len(log) == pytest.approx(2 / 3, abs=0.005)  # in proportion to the deviations
    assert float(below.square().mean().sqrt()) == pytest.approx(1.2, rel=0.01)
    assert float(above.square().mean().sqrt()) == pytest.approx(0.6, rel=0.01)


def test_the_improved_ddpm_grid_steps_through_its_own_process():
    sigmas = sampling_sigmas(2000, grid="iddpm").unique().flip(0)[:-1]
    bars = torch.sin(math.pi / 2 * torch.arange(1001, dtype=torch.float64) / 1008) ** 2
    # Where the clamp never acted, sigma^2 + 1 is the reciprocal of alpha-bar, over that of the last step.
    j = 1000 - torch.arange(1, 11)
    torch.testing.assert_close(sigmas[-10:].flip(0), (bars[1000] / bars[j] - 1).sqrt())


def test_the_preconditioning_at_sigma_data_is_that_of_the_paper():
    assert coefficients(0.5, 0.5) == pytest.approx((0.5, 0.353553, 1.414214), abs=1e-6)


def test_the_loss_is_zero_for_the_exact_network_and_is_the_weighted_denoising_error():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(64, 10, 3, generator=generator) for _ in range(2))
    sigma = sample_sigmas(64, generator=generator)
    guess = torch.randn(64, 10, 3, generator=generator)

    def network(_):
        return guess

    loss = edm_loss(network, clean, sigma, noise)
    noisy = clean + sigma[:, None, None].float() * noise
    error = (denoise(network, noisy, sigma) - clean).double()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert float(loss) == pytest.approx(float((weight[:, None, None] * error**2).mean()), rel=1e-3)


def test_ddim_returns_what_a_perfect_denoiser_says_and_is_the_core_s_step():
    target = torch.tensor([0.3, -0.7, 1.0]).expand(2, 10, 3)
    start = 80 * torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(lambda x, s: target, start, sampling_sigmas().tolist()), target)
    one = torch.ones((), dtype=torch.float64)
    step = dpmpp_1_step(start.double(), target.double(), Level(one, 6.5 * one), Level(one, 1.9 * one))
    torch.testing.assert_close(ddim_step(start.double(), target.double(), 6.5, 1.9), step.sample)


@pytest.mark.parametrize(("variance", "slope"), [(0.25, 4.574215e-03), (0.01, 9.128241e-04)])
def test_ten_ddim_steps_shrink_gaussian_data_by_the_known_slope(variance, slope):
    mean = 0.4

    def gaussian(x, sigma):
        return (variance * x + sigma**2 * mean) / (variance + sigma**2)

    starts = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
    ends = sample(gaussian, starts, sampling_sigmas().tolist()).flatten()
    assert float(ends[1] - ends[0]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_converge_to_the_exact_flow_of_gaussian_data(sampler):
    calls = []

    def gaussian(x, sigma):
        calls.append(sigma)
        return 0.25 * x / (0.25 + sigma**2)

    start = torch.ones(1, 1, 1, dtype=torch.float64)
    sigmas = sampling_sigmas(400).tolist()
    end = float(sample(gaussian, start, sigmas, sampler))
    tolerance = 0.02 if sampler in ("ddim", "euler") else 0.005
    assert end == pytest.approx(0.5 / math.sqrt(0.25 + 80**2), rel=tolerance)
    assert set(calls) == set(evaluation_sigmas(sigmas, sampler))


@pytest.mark.parametrize(
    ("calls", "orders"), [(1, [1]), (2, [2]), (3, [2, 1]), (7, [3, 3, 1]), (9, [3, 3, 2, 1])]
)
def test_the_fast_solver_spends_its_calls_on_orders_up_to_three(calls, orders):
    sigmas = sampling_sigmas(calls + 1).tolist()
    legs = fast_legs(sigmas)
    assert [leg.order for leg in legs] == orders
    assert (legs[0].sigma, legs[-1].following) == pytest.approx((80, 0.001))
    assert len(evaluation_sigmas(sigmas, "dpm-fast")) == calls + 1
    assert evaluation_sigmas([80.0, 0.0], "dpm-fast") == [80.0]


@pytest.mark.parametrize(("order", "accuracy"), [(1, 2), (2, 3), (3, 4)])
def test_a_solver_s_step_has_the_error_of_its_order(order, accuracy):
    def gaussian(x, sigma):
        return 0.25 * x / (0.25 + sigma**2)

    def error(h):
        leg = Leg(1.0, math.exp(-h), order)
        found = float(order_step(gaussian, torch.ones(1, 1, 1, dtype=torch.float64), leg))
        return abs(found - math.sqrt((0.25 + leg.following**2) / 1.25))

    assert math.log2(error(0.1) / error(0.05)) == pytest.approx(accuracy, abs=0.25)


def test_the_adaptive_solver_spends_calls_for_accuracy_and_stops_at_bad_values():
    exact, errors, calls = 0.5 / math.sqrt(0.25 + 80**2), [], []

    def gaussian(x, sigma):
        calls[-1] += 1
        return 0.25 * x / (0.25 + sigma**2)

    start = torch.ones(1, 1, 1, dtype=torch.float64)
    for rtol in (0.05, 0.005, 0.0001):
        calls.append(0)
        end = dpm_adaptive(gaussian, start, sampling_sigmas().tolist(), rtol=rtol, atol=1e-6)
        errors.append(abs(float(end) - exact) / exact)
    assert calls == sorted(calls)
    assert calls[-1] < 400
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.002
    assert evaluation_sigmas(sampling_sigmas().tolist(), "dpm-adaptive") == []
    with pytest.raises(NonFiniteError, match="sigma 80"):
        sample(lambda x, s: x * math.nan, start, sampling_sigmas().tolist(), "dpm-adaptive")


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm2"])
def test_churn_adds_noise_before_each_step_and_keeps_the_spread(sampler):
    generator, calls = torch.Generator().manual_seed(0), set()

    def gaussian(x, sigma):
        calls.add(sigma)
        return 0.25 * x / (0.25 + sigma**2)

    def draw():
        return torch.randn(20_000, 1, 1, generator=generator, dtype=torch.float64)

    sigmas, start = sampling_sigmas(300).tolist(), 80 * draw()
    ends = sample(gaussian, start, sigmas, sampler, draw, churn=60)
    still = sample(gaussian, start, sigmas, sampler)
    assert calls == {*evaluation_sigmas(sigmas, sampler, 60), *evaluation_sigmas(sigmas, sampler)}
    assert float(ends.std()) == pytest.approx(0.5, rel=0.06)
    # Without churn an end is a multiple of its start; with it, ends forget where they started.
    correlation = [
        float(torch.corrcoef(torch.stack((start.flatten(), e.flatten())))[0, 1]) for e in (ends, still)
    ]
    assert correlation[0] < 0.6 < 0.999 < correlation[1]


@pytest.mark.parametrize("sampler", NOISY)
def test_ancestral_samplers_reach_the_spread_of_the_data(sampler):
    generator = torch.Generator().manual_seed(0)
    calls = set()

    def gaussian(x, sigma):
        calls.add(sigma)
        return 0.25 * x / (0.25 + sigma**2)

    def draw():
        return torch.randn(20_000, 1, 1, generator=generator, dtype=torch.float64)

    sigmas = sampling_sigmas(200 if sampler == "euler-ancestral" else 60).tolist()
    ends = sample(gaussian, 80 * draw(), sigmas, sampler, draw)
    assert float(ends.std()) == pytest.approx(0.5, rel=0.06)
    assert calls == set(evaluation_sigmas(sigmas, sampler))


def test_multistep_weights_integrate_polynomials_exactly():
    past = [3.0, 2.0, 1.2]
    weights = lms_weights(past, 1.2, 0.7)
    for power in range(3):
        exact = (0.7 ** (power + 1) - 1.2 ** (power + 1)) / (power + 1)
        assert sum(w * s**power for w, s in zip(weights, past, strict=True)) == pytest.approx(exact, rel=1e-9)


def test_levels_that_do_not_fall_to_zero_and_missing_noise_are_refused():
    x = torch.zeros(1, 1, 1)
    with pytest.raises(InputError, match="fall and end with 0"):
        sample(lambda x, s: x, x, [1.0, 2.0, 0.0])
    with pytest.raises(InputError, match="fall and end with 0"):
        sample(lambda x, s: x, x, [2.0, 1.0])
    with pytest.raises(InputError, match="pass draw"):
        sample(lambda x, s: x, x, [2.0, 1.0, 0.0], "euler-ancestral")
    with pytest.raises(InputError, match="pass draw"):
        sample(lambda x, s: x, x, [2.0, 1.0, 0.0], "heun", churn=1.0)
    with pytest.raises(InputError, match="churn is for the samplers euler, heun, dpm2"):
        sample(lambda x, s: x, x, [2.0, 1.0, 0.0], "ddim", lambda: x, churn=1.0)
    with pytest.raises(InputError, match="sigma_min must be a number above 0"):
        sampling_sigmas(sigma_min=0.0)
