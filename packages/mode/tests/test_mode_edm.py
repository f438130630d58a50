"""EDM: sampling levels, training density, preconditioning and DDIM against closed forms."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level
from noiseworks.core.solvers import dpmpp_1_step
from noiseworks.mode.edm import (
    ddim_step,
    denoise,
    edm_loss,
    log_logistic_quantile,
    sample,
    sample_sigmas,
    sampling_sigmas,
)
from noiseworks.mode.policy import coefficients

SIGMAS = [80, 22.819294, 6.509003, 1.856636, 0.529589, 0.151061, 0.043089, 0.012291, 0.003506, 0.001, 0]


def test_the_ten_levels_are_even_in_log_sigma_from_80_to_a_thousandth():
    # The published table is float32.
    torch.testing.assert_close(
        sampling_sigmas(), torch.tensor(SIGMAS, dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("grid", ["exponential", "karras"])
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


def test_ddim_converges_to_the_exact_flow_of_gaussian_data_in_one_call_a_level():
    calls = []

    def gaussian(x, sigma):
        calls.append(sigma)
        return 0.25 * x / (0.25 + sigma**2)

    sigmas = sampling_sigmas(400).tolist()
    end = float(sample(gaussian, torch.ones(1, 1, 1, dtype=torch.float64), sigmas))
    assert end == pytest.approx(0.5 / math.sqrt(0.25 + 80**2), rel=0.02)
    assert calls == sigmas[:-1]


def test_levels_that_do_not_fall_to_zero_are_refused():
    x = torch.zeros(1, 1, 1)
    with pytest.raises(InputError, match="fall and end with 0"):
        sample(lambda x, s: x, x, [1.0, 2.0, 0.0])
    with pytest.raises(InputError, match="fall and end with 0"):
        sample(lambda x, s: x, x, [2.0, 1.0])
    with pytest.raises(InputError, match="sigma_min must be a number above 0"):
        sampling_sigmas(sigma_min=0.0)
