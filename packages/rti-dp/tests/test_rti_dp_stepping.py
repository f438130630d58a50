"""Lists of steps: the schedule's numbers, the reverse step against diffusers, the exact cases, bad lists."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import make_scheduler, reverse_step_
from noiseworks.rti_dp import Gaussian, GaussianHost, RTIPolicy, contraction
from noiseworks.rti_dp.stepping import next_steps, step_table

COSINE = {
    0: 0.999369,
    1: 0.998253,
    2: 0.996652,
    3: 0.994570,
    5: 0.988967,
    10: 0.966717,
    25: 0.835621,
    40: 0.632516,
}
LINEAR = {0: 0.9999, 2: 0.999097, 25: 0.934217, 99: 0.363563}
LONG = (25, 22, 20, 18, 16, 14, 12, 10, 8, 5, 3, 2, 1, 0)


def test_the_two_schedules_have_the_published_numbers():
    cosine, linear = make_scheduler().alphas_cumprod, DDPMScheduler(num_train_timesteps=100).alphas_cumprod
    for k, value in COSINE.items():
        assert float(cosine[k]) == pytest.approx(value, abs=1e-6)
    for k, value in LINEAR.items():
        assert float(linear[k]) == pytest.approx(value, abs=1e-6)
    assert step_table(make_scheduler(), (2, 1, 0)).sigma[0] == pytest.approx(0.0579, abs=1e-4)
    assert step_table(DDPMScheduler(num_train_timesteps=100), (2, 1, 0)).sigma[0] == pytest.approx(
        0.0300, abs=1e-4
    )


def test_stepping_rules_differ_where_a_list_jumps():
    assert next_steps((3, 1, 0), "consistent") == (1, 0, -1)
    assert next_steps((3, 1, 0), "reference") == (2, 0, -1)
    assert next_steps((2, 1, 0), "consistent") == next_steps((2, 1, 0), "reference")


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [(2, 1, 0), (60, 25, 3, 0)])
def test_a_ddpm_step_is_that_of_diffusers(kind, variance, steps):
    scheduler = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", variance_type=variance, prediction_type=kind
    )
    table = step_table(scheduler, steps)
    scheduler.set_timesteps(timesteps=list(steps))
    generator = torch.Generator().manual_seed(0)
    x, scratch = torch.randn(2, 4, 3, generator=generator), torch.empty(2, 4, 3)
    for j, k in enumerate(steps):
        output = torch.randn(2, 4, 3, generator=generator)
        noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(j))
        again = torch.Generator().manual_seed(j)
        expected = scheduler.step(output, k, x, generator=again).prev_sample
        reverse_step_(x, output, scratch, noise, table, j)
        torch.testing.assert_close(x, expected, rtol=0, atol=0 if kind != "v_prediction" else 1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_ddim_step_is_that_of_diffusers(kind):
    scheduler = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    scheduler.set_timesteps(5)
    table = step_table(scheduler, scheduler.timesteps.tolist(), solver="ddim")
    x, scratch = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), torch.empty(2, 4, 3)
    for j, k in enumerate(scheduler.timesteps):
        output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(j))
        expected = scheduler.step(output, k, x).prev_sample
        reverse_step_(x, output, scratch, torch.empty(0), table, j)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=2e-5)


def run_once(host, guess, steps, stepping="consistent", **settings):
    policy = RTIPolicy(host, steps, stepping=stepping, **settings)
    policy.guess.fill_(guess)
    policy.warm[:] = True
    policy.remember({"obs": torch.zeros(1, 1)}, [0])
    return policy.replan([0]).prediction


@pytest.mark.parametrize("stepping", ["consistent", "reference"])
@pytest.mark.parametrize("steps", [(2, 1, 0), (25, 20, 10, 5, 0)])
def test_a_point_mass_is_reached_from_any_guess_in_one_replan(steps, stepping):
    host = GaussianHost(Gaussian(-0.2, 0.0), clip_sample=True)
    found = run_once(host, 0.5, steps, stepping)
    torch.testing.assert_close(found, torch.full_like(found, -0.2), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("variance", "steps", "reference", "consistent"),
    [
        (1e-4, (2, 1, 0), 0.0290, 0.0290),
        (1e-4, (3, 1, 0), 0.0337, 0.0180),
        (1e-4, (5, 3, 1, 0), 0.0244, 0.0089),
        (1e-3, (2, 1, 0), 0.2298, 0.2298),
        (1e-3, (3, 1, 0), 0.2458, 0.1552),
        (1e-3, tuple(range(25, -1, -1)), 0.0055, 0.0055),
        (1e-3, LONG, 0.0370, 0.0055),
        (1e-2, (3, 1, 0), 0.7368, 0.6486),
        (0.1, (2, 1, 0), 0.9691, 0.9691),
    ],
)
def test_gaussian_slopes_in_closed_form_and_by_denoising(variance, steps, reference, consistent):
    data = Gaussian(0.3, variance)
    for stepping, slope in (("reference", reference), ("consistent", consistent)):
        assert contraction(data, steps, stepping=stepping) == pytest.approx(slope, abs=6e-5)
        low, high = (run_once(GaussianHost(data), g, steps, stepping, noise="none") for g in (-0.5, 0.5))
        torch.testing.assert_close(high - low, torch.full_like(low, slope), rtol=0, atol=1e-4)


def test_slopes_fall_with_the_start_and_grow_with_the_variance():
    starts = [contraction(Gaussian(0.0, 1e-3), tuple(range(k, -1, -1))) for k in range(1, 30)]
    assert all(after < before for before, after in pairwise(starts))
    widths = [contraction(Gaussian(0.0, v), (2, 1, 0)) for v in (1e-5, 1e-4, 1e-3, 1e-2, 0.1)]
    assert all(before < after < 1 for before, after in pairwise(widths))


def test_the_measured_contraction_of_a_policy_is_the_gaussian_slope():
    host = GaussianHost(Gaussian(0.1, 1e-3), horizon=4, action_dim=2)
    found = contraction(host, (3, 1, 0), obs={"obs": torch.zeros(3, 1)}, guess=torch.zeros(3, 4, 2))
    assert found == pytest.approx(0.1552, abs=1e-3)
    with pytest.raises(InputError, match="obs and guess"):
        contraction(host, (3, 1, 0))


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ((), "list"),
        ((0, 1), "decrease"),
        ((2, 2, 0), "decrease"),
        ((100, 0), "99"),
        ((3, -1), "-1"),
        ((1.5, 0), "1.5"),
    ],
)
def test_bad_lists_are_refused(steps, named):
    with pytest.raises(InputError, match=named):
        step_table(make_scheduler(), steps)


def test_a_list_that_does_not_end_in_zero_warns():
    with pytest.warns(UserWarning, match="ends in 2"):
        step_table(make_scheduler(), (5, 2))


def test_schedulers_with_another_step_are_refused():
    for settings, named in (
        ({"variance_type": "learned_range"}, "learned_range"),
        ({"thresholding": True}, "thresholding"),
    ):
        with pytest.raises(UnsupportedHostError, match=named):
            step_table(DDPMScheduler(100, **settings), (2, 1, 0))
    with pytest.raises(UnsupportedHostError, match="alphas_cumprod"):
        step_table(object(), (0,))
