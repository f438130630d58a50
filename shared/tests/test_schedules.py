"""Schedules: literal values of the families, inverses, per-token levels and refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core import schedules
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import (
    Level,
    TableSchedule,
    add_noise,
    beta_table,
    dynamic_shift,
    expand,
    from_betas,
    stable_diffusion,
    table_schedule,
    zero_terminal,
)

CONTINUOUS = {
    "vp": schedules.vp(),
    "ve": schedules.ve(),
    "ou": schedules.ou(),
    "edm": schedules.edm(),
    "cosine": schedules.cosine(),
    "flow": schedules.flow(),
    "flow, shift 3": schedules.flow(3.0),
}
TABLES = {kind: table_schedule(kind) for kind in schedules.BETA_KINDS} | {
    "stable diffusion": stable_diffusion()
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", (0.9999, 0.521423030619, 0.077796658365, 4.03582976538e-05)),
        ("stable diffusion", (0.99915, 0.673792625233, 0.276332683823, 0.00466009851308)),
        ("cosine", (0.999958715775, 0.845887986497, 0.492285172449, 2.42876690703e-09)),
        ("sigmoid", (0.999850794799, 0.902798916225, 0.298887627847, 3.96818199e-05)),
    ],
)
def test_tables_hold_their_literal_values(kind, expected):
    assert TABLES[kind].alphas_cumprod[[0, 250, 500, 999]].tolist() == pytest.approx(expected, rel=1e-9)


def test_only_the_last_beta_of_the_cosine_table_is_capped():
    betas = beta_table("cosine")
    assert betas[0].item() == pytest.approx(4.12842248e-05, rel=1e-8)
    assert (betas == 0.999).nonzero().flatten().tolist() == [999]


def test_sigmoid_alpha_follows_its_formula_and_differs_from_the_sigmoid_of_betas():
    table = TABLES["sigmoid_alpha"].alphas_cumprod

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for i in (0, 123, 500, 998):
        u = (i + 1) / 1000
        expected = (sigmoid(3) - sigmoid(-3 + 6 * u)) / (sigmoid(3) - sigmoid(-3))
        assert table[i].item() == pytest.approx(expected, rel=1e-10)
    assert (table - TABLES["sigmoid"].alphas_cumprod).abs().max() > 0.1


def test_stable_diffusion_noise_range():
    sigma = stable_diffusion().level(torch.tensor([999, 0])).sigma_ve
    assert sigma.tolist() == pytest.approx([14.6146412293, 0.0291671582], rel=1e-8)


def test_zero_terminal_ends_in_pure_noise_and_keeps_the_first_level():
    table = zero_terminal(stable_diffusion()).alphas_cumprod
    assert table[999] == 0
    assert table[0].item() == pytest.approx(0.99915, rel=1e-12)
    # float64; the float32 recipe of diffusers gives 0.652456684 and 0.24101858
    assert table[250].item() == pytest.approx(0.652457015, rel=1e-8)
    assert table[500].item() == pytest.approx(0.241018783, rel=1e-8)
    assert table[998].item() == pytest.approx(1.968e-07, rel=1e-3)


def test_rescaled_betas_end_at_about_the_same_level():
    short = table_schedule("linear", 250, rescale=True).alphas_cumprod[-1].log()
    plain = table_schedule("linear", 250).alphas_cumprod[-1].log()
    full = table_schedule("linear").alphas_cumprod[-1].log()
    assert abs(short / full - 1) < 0.04
    assert abs(plain / full - 1) > 0.5


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_variance_preserving_and_fall(name):
    schedule = TABLES[name]
    level = schedule.level(torch.arange(-1, schedule.num_steps))
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(1, dtype=torch.float64), atol=1e-15)
    assert bool((schedule.log_snr(torch.arange(-1, schedule.num_steps)).diff() < 0).all())
    assert (level.alpha[0], level.sigma[0]) == (1, 0)
    assert torch.allclose(from_betas(schedule.betas).alphas_cumprod, schedule.alphas_cumprod, rtol=1e-9)


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=50, deadline=None)
@given(t=st.floats(0, 999))
def test_log_snr_inverts_on_tables(name, t):
    schedule = TABLES[name]
    assert float(schedule.t_of_log_snr(schedule.log_snr(t))) == pytest.approx(t, abs=1e-9)


def test_log_snr_of_tables_clamps_and_survives_a_zero_terminal_level():
    schedule = zero_terminal(stable_diffusion())
    indices = torch.arange(1000)
    assert torch.equal(schedule.t_of_log_snr(schedule.log_snr(indices)), indices.double())
    assert schedule.t_of_log_snr(100.0) == 0
    assert schedule.log_snr(998.5) == -math.inf
    assert schedule.level(999.0) == Level(torch.tensor(0.0), torch.tensor(1.0))
    assert schedule.log_snr(-1.0) == math.inf


def test_fractional_indices_interpolate_the_log_snr():
    schedule = stable_diffusion()
    assert schedule.log_snr(749.25) == pytest.approx(
        0.75 * schedule.log_snr(749) + 0.25 * schedule.log_snr(750)
    )
    level = schedule.level(torch.tensor([749.0, 749.25]))
    assert torch.allclose(level.alpha[0], schedule.alpha(749), rtol=1e-14)
    assert torch.allclose(level.log_snr, schedule.log_snr(torch.tensor([749.0, 749.25])), rtol=1e-12)


@pytest.mark.parametrize("name", CONTINUOUS)
@settings(max_examples=100, deadline=None)
@given(u=st.floats(1e-4, 0.9999))
def test_log_snr_inverts_and_falls_on_continuous_schedules(name, u):
    schedule = CONTINUOUS[name]
    t = schedule.t_min + u * (schedule.t_max - schedule.t_min)
    assert float(schedule.t_of_log_snr(schedule.log_snr(t))) == pytest.approx(t, abs=1e-9)
    assert schedule.log_snr(t) > schedule.log_snr(t * (1 + 1e-6))


def test_continuous_schedules_follow_their_formulas():
    t = 0.37
    vp = CONTINUOUS["vp"].level(t)
    assert float(vp.sigma_ve) == pytest.approx(
        math.sqrt(math.exp(0.5 * 19.9 * t**2 + 0.1 * t) - 1), rel=1e-12
    )
    assert float(vp.alpha**2 + vp.sigma**2) == pytest.approx(1, rel=1e-14)
    assert float(CONTINUOUS["ve"].sigma(t)) == pytest.approx(0.01 * 5000**t, rel=1e-12)
    ou = CONTINUOUS["ou"].level(t)
    assert [float(c) for c in ou] == pytest.approx([math.exp(-t / 2), math.sqrt(1 - math.exp(-t))], rel=1e-12)
    f = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, t)]
    cosine = CONTINUOUS["cosine"].level(t)
    assert float(cosine.alpha**2) == pytest.approx(f[1] / f[0], rel=1e-12)
    assert float(cosine.sigma**2) == pytest.approx(1 - f[1] / f[0], rel=1e-12)
    assert float(CONTINUOUS["flow, shift 3"].sigma(t)) == pytest.approx(3 * t / (1 + 2 * t), rel=1e-12)


def test_the_cosine_path_keeps_its_precision_near_the_clean_end():
    # 1 − f(t)/f(0) loses all digits here; the derivative at 0 is π/1.008 · tan(0.008/1.008 · π/2) · t
    t = 1e-9
    slope = math.pi / 1.008 * math.tan(0.008 / 1.008 * math.pi / 2)
    assert float(schedules.cosine().sigma(t) ** 2) == pytest.approx(slope * t, rel=1e-6)


def test_the_cosine_table_and_path_agree_before_the_cap():
    path = schedules.cosine().alpha(torch.tensor([1, 500, 999]).double() / 1000) ** 2
    assert path.tolist() == pytest.approx(TABLES["cosine"].alphas_cumprod[[0, 499, 998]].tolist(), rel=1e-6)


def test_flow_directions_mirror_each_other():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    to_noise, to_clean = schedules.flow(3.0), schedules.flow(3.0, clean_at_one=True)
    assert torch.allclose(to_noise.sigma(t), to_clean.sigma(1 - t), rtol=1e-14)
    inner = t[1:-1]
    assert torch.allclose(to_clean.t_of_log_snr(to_clean.log_snr(inner)), inner, atol=1e-12)


def test_dynamic_shift_of_flux():
    assert math.log(dynamic_shift(1024)) == pytest.approx(0.63)
    assert math.log(dynamic_shift(4096)) == pytest.approx(1.15)


def test_half_precision_would_lose_the_first_noise_level():
    alphas_cumprod = TABLES["linear"].alphas_cumprod[0]
    assert (1 - alphas_cumprod.half()) == 0
    assert float(TABLES["linear"].sigma(0)) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize(
    ("times", "shape"),
    [((), (2, 3, 4)), ((2,), (2, 3, 4)), ((2, 3), (2, 3, 4)), ((2, 1, 5, 5), (2, 3, 5, 5)), ((1,), (2, 3))],
)
def test_times_of_any_broadcastable_shape_are_accepted(times, shape):
    x = torch.ones(shape)
    level = stable_diffusion().level(torch.full(times, 500))
    noised = add_noise(x, torch.zeros_like(x), level)
    assert noised.shape == x.shape
    assert torch.allclose(noised, torch.full_like(x, 0.276332683823**0.5))


def test_per_token_levels_leave_clean_tokens_alone():
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    t = torch.tensor([[-1, 10, 999], [500, -1, -1]])
    noised = add_noise(x, noise, stable_diffusion().level(t))
    assert torch.equal(noised[t == -1], x[t == -1])
    assert torch.equal(noised[0, 1], add_noise(x[0, 1], noise[0, 1], stable_diffusion().level(10)))


def test_coefficients_are_float32_for_half_precision_samples_and_float64_for_float64():
    level = stable_diffusion().level(torch.tensor([3]))
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x = torch.ones(1, 2, dtype=dtype)
        assert expand(level.alpha, x).dtype == wanted
        assert add_noise(x, x, level).dtype == dtype


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: beta_table("quadratic"), "kind must be one of"),
        (lambda: beta_table("linear", beta_end=1.0), "beta_end must be a number above 0 and below 1"),
        (lambda: beta_table("linear", 10, rescale=True), r"betas must lie in \(0, 1\)"),
        (lambda: from_betas(torch.tensor([0.1, -0.1])), r"betas must be a vector within \(0, 1\)"),
        (lambda: from_betas(torch.tensor([0.1, 1.0, 0.1])), "must fall strictly"),
        (lambda: TableSchedule("x", torch.tensor([0.5, 0.6], dtype=torch.float64)), "must fall strictly"),
        (lambda: TableSchedule("x", torch.tensor([1.0, 0.6], dtype=torch.float64)), "must fall strictly"),
        (lambda: TableSchedule("x", torch.tensor([0.9, 0.5], dtype=torch.float16)), "float64 vector"),
        (
            lambda: TableSchedule("x", torch.tensor([math.nan, 0.5], dtype=torch.float64)),
            "must fall strictly",
        ),
        (lambda: stable_diffusion().level(1000), "step index must lie in -1 ... 999, got 1000"),
        (lambda: stable_diffusion().level(torch.tensor([0, -2])), "got -2"),
        (lambda: stable_diffusion().log_snr(999.5), "got 1000"),
        (lambda: expand(torch.zeros(2, 3), torch.zeros(2, 4, 5)), "do not fit a sample"),
        (lambda: expand(torch.zeros(2, 3, 4), torch.zeros(2, 3)), "do not fit a sample"),
        (lambda: schedules.flow(0.0), "shift must be a number above 0"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_lookups_stay_on_the_times_device_and_copy_the_table_there_once():
    schedule = stable_diffusion()
    steps = torch.zeros(3, dtype=torch.int64, device="meta")
    assert schedule.level(steps).alpha.device.type == "meta"
    tables = dict(schedule._tables)
    assert schedule.level(steps).alpha.device.type == "meta"
    assert schedule.level(3).alpha.device.type == "cpu"
    assert set(tables) == {torch.device("cpu"), torch.device("meta")}
    assert all(schedule._tables[device] is table for device, table in tables.items())
