"""Step grids, per-token plans and training-time draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core import grids
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import cosine, stable_diffusion, vp, zero_terminal


def test_ten_step_grids():
    assert grids.timesteps("leading", 1000, 10).tolist() == list(range(900, -1, -100))
    assert grids.timesteps("trailing", 1000, 10).tolist() == list(range(999, 0, -100))
    assert grids.timesteps("linspace", 1000, 10).tolist() == list(range(999, -1, -111))
    offset = grids.timesteps("leading", 1000, 50, steps_offset=1).tolist()
    assert (offset[0], offset[-1], len(offset)) == (981, 1, 50)
    quadratic = grids.timesteps("quadratic", 1000, 10)
    assert quadratic[0] == 800 or quadratic[0] == 799
    assert torch.allclose(quadratic.double().sqrt().diff(), torch.tensor(-(800**0.5) / 9).double(), atol=0.6)


@given(
    spacing=st.sampled_from(grids.SPACINGS),
    n=st.integers(1, 190),
    total=st.integers(200, 1000),
    offset=st.integers(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_grids_fall_within_the_table(spacing, n, total, offset):
    grid = grids.timesteps(spacing, total, n, steps_offset=offset)
    assert grid.shape == (n,)
    assert bool((grid >= 0).all())
    assert bool((grid < total).all())
    assert bool((grid.diff() <= 0).all() if spacing == "quadratic" else (grid.diff() < 0).all())


def test_karras_and_exponential_sigmas():
    expected = [80, 17.5278319646, 2.5152189761, 0.1697527563, 0.002]
    assert grids.karras_sigmas(5).tolist() == pytest.approx(expected, rel=1e-8)
    exponential = grids.append_zero(grids.exponential_sigmas(4, 0.01, 10.0))
    assert exponential.tolist() == pytest.approx([10, 1, 0.1, 0.01, 0])


@pytest.mark.parametrize("schedule", [stable_diffusion(), vp()], ids=["table", "vp"])
def test_uniform_log_snr_grids_are_even(schedule):
    times = grids.uniform_log_snr_times(schedule, 9)
    gaps = schedule.log_snr(times).diff()
    assert torch.allclose(gaps, gaps.mean().expand(8), rtol=1e-9)
    assert float(times[0]) == pytest.approx(schedule.t_max)
    assert float(times[-1]) == pytest.approx(schedule.t_min, abs=1e-9)


def test_truncated_grids_end_clean():
    assert grids.truncated_timesteps(49, 2).tolist() == [49, 24, -1]
    assert grids.truncated_timesteps(3, 4).tolist() == [3, 2, 1, 0, -1]


def test_schedule_matrices():
    assert grids.schedule_matrix("full_sequence", 2, 3).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert grids.schedule_matrix("autoregressive", 2, 2).tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]
    assert grids.schedule_matrix("pyramid", 3, 2).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [2, 1, 0],
        [2, 2, 1],
        [2, 2, 2],
    ]
    levels = grids.with_clean_end(grids.timesteps("trailing", 1000, 2))[
        grids.schedule_matrix("pyramid", 3, 2)
    ]
    assert levels[0].tolist() == [999, 999, 999]
    assert levels[2].tolist() == [-1, 499, 999]
    assert levels[-1].tolist() == [-1, -1, -1]


def test_delay_maps_give_monotone_per_pixel_plans():
    delays = grids.delay_map((8, 6), (2, 2), 5, generator=torch.Generator().manual_seed(0))
    assert delays.shape == (8, 6)
    assert 0 <= int(delays.min()) < int(delays.max()) <= 5
    assert int(delays.diff(dim=0).abs().max()) <= 1
    plan = grids.delayed_steps(delays, 4)
    assert bool((plan.diff(dim=0) >= 0).all())
    assert bool((plan[0] == 0).all())
    assert bool((plan[-1] == 4).all())


def test_stratified_times_cover_the_interval_and_stay_uniform():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([grids.stratified_uniform(8, generator=generator) for _ in range(500)])
    assert torch.equal((draws * 8).floor().sort(1).values, torch.arange(8.0).double().expand(500, 8))
    assert float(draws[:, 3].mean()) == pytest.approx(0.5, abs=0.05)


def test_training_draws_have_their_distributions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.logit(grids.logit_normal_times(20_000, 0.5, 2.0, generator=generator))
    sigmas = grids.log_normal_sigmas(20_000, generator=generator).log()
    assert [float(logits.mean()), float(logits.std())] == pytest.approx([0.5, 2.0], abs=0.05)
    assert [float(sigmas.mean()), float(sigmas.std())] == pytest.approx([-1.2, 1.2], abs=0.04)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grids.timesteps("even", 1000, 10), "spacing must be one of"),
        (lambda: grids.timesteps("leading", 1000, 1001), "num_inference_steps must be .* of at most 1000"),
        (lambda: grids.timesteps("leading", 10, 10, steps_offset=1), "starts at 10, past 9"),
        (lambda: grids.truncated_timesteps(3, 6), "num_inference_steps"),
        (lambda: grids.karras_sigmas(5, 2.0, 1.0), "sigma_max must be a number above 2"),
        (
            lambda: grids.uniform_log_snr_times(zero_terminal(stable_diffusion()), 5),
            "without noise or signal",
        ),
        (lambda: grids.uniform_log_snr_times(cosine(), 5, t_end=0.0), "without noise or signal"),
        (lambda: grids.schedule_matrix("diagonal", 3, 3), "kind must be one of"),
    ],
)
def test_bad_grids_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
