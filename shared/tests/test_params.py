"""Prediction types, loss weights, paths and guidance."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noiseworks.core import params
from noiseworks.core.errors import InputError
from noiseworks.core.params import PREDICTION_TYPES, convert, from_x0_epsilon, to_epsilon, to_x0
from noiseworks.core.schedules import Level, add_noise, edm, flow, stable_diffusion, ve, vp, zero_terminal

GENERAL = Level(torch.tensor(1.3, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_worked_numbers():
    level, x0, epsilon = Level(f64(0.8), f64(0.6)), f64(1.5), f64(-0.4)
    assert float(add_noise(x0, epsilon, level)) == pytest.approx(0.96)
    assert float(from_x0_epsilon(x0, epsilon, level, "v_prediction")) == pytest.approx(-1.22)
    assert float(from_x0_epsilon(x0, epsilon, level, "score")) == pytest.approx(2 / 3)
    assert float(from_x0_epsilon(x0, epsilon, level, "flow_prediction")) == pytest.approx(-1.9)


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.05, 2), sigma=st.floats(0.05, 2), x0=st.floats(-3, 3), epsilon=st.floats(-3, 3))
def test_every_conversion_is_exact_at_any_level(alpha, sigma, x0, epsilon):
    level = Level(f64(alpha), f64(sigma))
    x0, epsilon = f64(x0), f64(epsilon)
    x = add_noise(x0, epsilon, level)
    for source, target in itertools.product(PREDICTION_TYPES, PREDICTION_TYPES):
        output = from_x0_epsilon(x0, epsilon, level, source)
        assert torch.allclose(to_x0(output, x, level, source), x0, rtol=0, atol=1e-11)
        assert torch.allclose(to_epsilon(output, x, level, source), epsilon, rtol=0, atol=1e-11)
        there = convert(output, x, level, source, target)
        assert torch.allclose(there, from_x0_epsilon(x0, epsilon, level, target), rtol=1e-10, atol=1e-9)
        assert torch.allclose(convert(there, x, level, target, source), output, rtol=1e-10, atol=1e-9)


def test_round_trips_hold_to_1e_12_on_trained_schedules():
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = (torch.randn(50, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    level = stable_diffusion().level(torch.randint(100, 900, (50,), generator=generator))
    x = add_noise(x0, epsilon, level)
    for kind in PREDICTION_TYPES:
        output = from_x0_epsilon(x0, epsilon, level, kind)
        assert (to_x0(output, x, level, kind) - x0).abs().max() < 1e-12
        assert (to_epsilon(output, x, level, kind) - epsilon).abs().max() < 1e-12


def test_pure_noise_still_gives_x0_from_v_and_flow_predictions():
    level = zero_terminal(stable_diffusion()).level(999)
    x0, epsilon = torch.randn(4), torch.randn(4)
    for kind in ("v_prediction", "flow_prediction", "sample"):
        assert torch.allclose(
            to_x0(from_x0_epsilon(x0, epsilon, level, kind), epsilon, level, kind), x0, atol=1e-6
        )
    for kind in ("epsilon", "score"):
        with pytest.raises(InputError, match="at zero signal"):
            to_x0(epsilon, epsilon, level, kind)


def test_the_noise_and_score_of_a_clean_sample_are_refused():
    clean, x = stable_diffusion().level(-1), torch.randn(4)
    with pytest.raises(InputError, match="clean sample"):
        to_epsilon(x, x, clean, "sample")
    with pytest.raises(InputError, match="clean sample"):
        convert(x, x, clean, "epsilon", "score")


def test_half_precision_predictions_are_converted_in_float32():
    x0, epsilon = torch.randn(1000), torch.randn(1000)
    level = stable_diffusion().level(5)
    x = add_noise(x0, epsilon, level).bfloat16()
    result = to_x0(epsilon.bfloat16(), x, level, "epsilon")
    assert result.dtype == torch.float32
    again = (x.double() - float(level.alpha) * result.double()) / float(level.sigma)
    assert (again - epsilon.bfloat16().double()).abs().max() < 1e-4


def test_unknown_prediction_types_are_refused():
    x = torch.zeros(1)
    for call in (to_x0, to_epsilon, from_x0_epsilon):
        with pytest.raises(InputError, match="prediction_type must be one of"):
            call(x, x, GENERAL, "noise")


@pytest.mark.parametrize("target", [vp(), ve(), edm(), flow(3.0)], ids=lambda s: s.kind)
def test_change_of_path_keeps_snr_and_x0(target):
    generator = torch.Generator().manual_seed(0)
    source = stable_diffusion()
    x0, epsilon = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    level = source.level(torch.tensor([100, 300, 500, 700, 900]))
    moved, t = params.change_path(add_noise(x0, epsilon, level), level, target)
    there = target.level(t)
    assert torch.allclose(there.log_snr, level.log_snr, atol=1e-9)
    assert torch.allclose(to_x0(epsilon, moved, there, "epsilon"), x0, atol=1e-10)
    back, index = params.change_path(moved, there, source)
    assert torch.allclose(index, f64(100, 300, 500, 700, 900), atol=1e-8)
    assert torch.allclose(back, add_noise(x0, epsilon, level), atol=1e-9)


def test_change_of_path_refuses_levels_out_of_reach():
    with pytest.raises(InputError, match="does not reach"):
        params.change_path(torch.zeros(1), vp().level(0.9999), stable_diffusion())


def test_snr_literals():
    snr = stable_diffusion().level(torch.arange(1000)).snr
    assert snr[[0, 999]].tolist() == pytest.approx([1175.47, 4.6819e-3], rel=1e-5)
    assert int((snr < 5).nonzero()[0]) == 147
    assert int((snr < 1).nonzero()[0]) == 354


def test_min_snr_literals():
    snr = stable_diffusion().level(torch.tensor([10, 250])).snr
    assert params.min_snr_weight(snr, "epsilon").tolist() == pytest.approx([0.0483057, 1], abs=1e-7)
    assert params.min_snr_weight(snr, "v_prediction").tolist() == pytest.approx(
        [0.0478435, 0.6737926], abs=1e-7
    )
    assert params.min_snr_weight(snr, "sample").tolist() == pytest.approx([5, 2.0655346], abs=1e-7)


@pytest.mark.parametrize(
    "weight", [params.min_snr_weight, params.p2_weight, params.sigmoid_weight, params.edm_weight]
)
@pytest.mark.parametrize("schedule", [stable_diffusion(), vp()], ids=["table", "vp"])
def test_a_weight_means_the_same_on_every_loss(weight, schedule):
    generator = torch.Generator().manual_seed(0)
    x0, epsilon, error = (torch.randn(8, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    t = (
        torch.linspace(10, 990, 8).long()
        if schedule.kind == "scaled_linear"
        else torch.linspace(0.01, 0.99, 8)
    )
    level = schedule.level(t)
    x = add_noise(x0, epsilon, level)
    losses = []
    for kind in ("sample", "epsilon", "v_prediction"):
        guess = convert(x0 + error, x, level, "sample", kind)
        squared = (guess - from_x0_epsilon(x0, epsilon, level, kind)).pow(2).mean(1)
        losses.append(weight(level.snr, kind) * squared)
    assert torch.allclose(losses[0], losses[1], rtol=1e-9)
    assert torch.allclose(losses[0], losses[2], rtol=1e-9)


def test_flow_loss_ratio_is_that_of_the_straight_path():
    level = flow().level(torch.tensor([0.1, 0.5, 0.8]))
    x0, error = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    x = torch.zeros_like(x0)
    change = convert(error, x, level, "sample", "flow_prediction") - convert(
        x0, x, level, "sample", "flow_prediction"
    )
    assert torch.allclose(change.squeeze(1) ** 2, params.loss_ratio(level.snr, "flow_prediction"), rtol=1e-12)


def test_edm_preconditioning_gives_unit_variance_inputs_and_targets():
    sigma = f64(0.002, 0.5, 80)
    c = params.edm_preconditioning(sigma)
    assert torch.allclose(c.c_in**2 * (sigma**2 + 0.25), torch.ones(3).double())
    # effective target (x_0 − c_skip x)/c_out has variance ((1−c_skip)² σ_d² + c_skip² σ²)/c_out²
    target = ((1 - c.c_skip) ** 2 * 0.25 + c.c_skip**2 * sigma**2) / c.c_out**2
    assert torch.allclose(target, torch.ones(3).double())
    assert torch.allclose(c.weight * c.c_out**2, torch.ones(3).double())
    assert torch.allclose(c.c_noise, sigma.log() / 4)
    assert torch.allclose(params.edm_weight(1 / sigma**2, "sample"), c.weight)


def test_the_denoiser_of_the_exploding_view_is_x0():
    x0, epsilon = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    level = vp().level(torch.tensor([0.1, 0.5, 0.9]))
    x_ve, sigma = params.ve_view(add_noise(x0, epsilon, level), level)
    assert torch.allclose(x_ve, x0 + sigma.unsqueeze(1) * epsilon)
    same = params.level_from_sigma_ve(sigma)
    assert torch.allclose(same.alpha, level.alpha)
    assert torch.allclose(same.sigma, level.sigma)


def test_guidance_conventions():
    u, c = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(params.guide(u, c, 0.0), u)
    assert torch.allclose(params.guide(u, c, 1.0), c)
    assert torch.allclose(params.guide(u, c, 7.5), params.guide_eta(u, c, 6.5), atol=1e-5)
    per_sample = params.guide(u, c, torch.tensor([0.0, 1.0, 3.0]))
    assert torch.allclose(per_sample[2], params.guide(u, c, 3.0)[2])
    assert torch.equal(per_sample[0], u[0])


def test_rescaled_guidance_has_the_conditional_spread():
    u, c = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    guided = params.guide(u, c, 7.5)
    assert torch.equal(params.rescale_guidance(guided, c, 0.0), guided)
    full = params.rescale_guidance(guided, c, 1.0)
    assert torch.allclose(full.std((1, 2)), c.std((1, 2)))
    assert torch.allclose(params.rescale_guidance(guided, c, 0.7), 0.7 * full + 0.3 * guided, atol=1e-6)
    with pytest.raises(InputError, match="phi must be"):
        params.rescale_guidance(guided, c, 1.5)
