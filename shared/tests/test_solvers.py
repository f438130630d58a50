"""DPM-Solver++: literal values, orders, and state that is the caller's."""

import pytest
import torch
from noiseworks.core.closed_form import flow_gain
from noiseworks.core.errors import InputError
from noiseworks.core.params import level_from_sigma_ve
from noiseworks.core.schedules import Level, stable_diffusion, vp
from noiseworks.core.solvers import dpmpp_1_step, dpmpp_2m_step, dpmpp_2s_step
from noiseworks.core.steps import ddim_step
from noiseworks.core.testing import convergence_order

SD = stable_diffusion()
DATA_STD = 0.5


def exact_x0(x, level):
    return level.alpha * DATA_STD**2 / (level.alpha**2 * DATA_STD**2 + level.sigma**2) * x


def test_2m_literals():
    sigmas = torch.tensor([14.6146469, 5.0877652, 2.2764640, 1.1643918, 0.5716664, 0.0], dtype=torch.float64)
    levels = [level_from_sigma_ve(s) for s in sigmas]
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    epsilon = torch.tensor([[0.3, -0.1]], dtype=torch.float64)
    expected = [
        (2.2739649, -5.4666066),
        (4.6370902, -11.3649101),
        (7.5015359, -18.4072609),
        (10.0084572, -24.5318756),
        (11.5284328, -28.2575111),
    ]
    history = None
    for i, scale in enumerate((1, 0.5, 0.25, 0.1, 0)):  # the model's ε fades, so that its x_0 changes
        level = levels[i]
        x0 = (x - level.sigma * epsilon * scale) / level.alpha
        step, history = dpmpp_2m_step(x, x0, level, levels[i + 1], history)
        x = step.sample
        assert x[0].tolist() == pytest.approx(expected[i], rel=1e-6)


@pytest.mark.parametrize(("name", "wanted"), [("1", 1), ("2m", 2), ("2s", 2)])
def test_orders_on_an_exact_score(name, wanted):
    path = vp()

    def error(n):
        log_snr = torch.linspace(float(path.log_snr(0.99)), float(path.log_snr(0.02)), 2 * n + 1).double()
        levels = [path.level(t) for t in path.t_of_log_snr(log_snr)]
        x, history = torch.ones(1, dtype=torch.float64), None
        for i in range(0, 2 * n, 2):
            level, middle, low = levels[i : i + 3]
            x0 = exact_x0(x, level)
            if name == "1":
                x = dpmpp_1_step(x, x0, level, low).sample
            elif name == "2m":
                step, history = dpmpp_2m_step(x, x0, level, low, history)
                x = step.sample
            else:
                x = dpmpp_2s_step(x, x0, level, middle, low, exact_x0).sample
        return abs(float(x / flow_gain(DATA_STD, levels[0], levels[-1])) - 1)

    counts = [40, 80, 160]
    assert convergence_order(counts, [error(n) for n in counts]) == pytest.approx(wanted, abs=0.2)


def test_first_order_is_ddim():
    x, x0 = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    pair = SD.level(600), SD.level(300)
    assert torch.allclose(dpmpp_1_step(x, x0, *pair).sample, ddim_step(x, x0, *pair).sample, rtol=1e-12)


def test_first_order_sde_has_the_ddpm_posterior():
    x, x0 = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    pair = SD.level(600), SD.level(300)
    sde, ddpm = dpmpp_1_step(x, x0, *pair, sde=True), ddim_step(x, x0, *pair, eta=1.0)
    assert torch.allclose(sde.mean, ddpm.mean, rtol=1e-10)
    assert torch.allclose(sde.std, ddpm.std, rtol=1e-10)


@pytest.mark.parametrize("sde", [False, True])
def test_the_step_to_the_clean_end_is_x0(sde):
    x, x0, before = (torch.randn(2, 3).double() for _ in range(3))
    _, history = dpmpp_2m_step(x, before, SD.level(600), SD.level(300), None)
    step, _ = dpmpp_2m_step(x, x0, SD.level(300), SD.level(-1), history, sde=sde, noise=torch.ones_like(x))
    assert torch.allclose(step.sample, x0, rtol=1e-12)
    assert float(step.std) == 0


def test_a_start_at_pure_noise_is_of_first_order():
    x, x0, before = (torch.randn(2, 3).double() for _ in range(3))
    noise = Level(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    _, history = dpmpp_2m_step(x, before, noise, SD.level(600), None)
    step, _ = dpmpp_2m_step(x, x0, SD.level(600), SD.level(300), history)
    assert torch.allclose(step.sample, dpmpp_1_step(x, x0, SD.level(600), SD.level(300)).sample, rtol=1e-12)


def test_state_is_the_callers_so_a_step_can_be_run_again():
    x, x0, before = (torch.randn(2, 3).double() for _ in range(3))
    _, history = dpmpp_2m_step(x, before, SD.level(600), SD.level(300), None)
    first, _ = dpmpp_2m_step(x, x0, SD.level(300), SD.level(100), history)
    again, _ = dpmpp_2m_step(x, x0, SD.level(300), SD.level(100), history)
    assert torch.equal(first.sample, again.sample)
    assert not torch.allclose(first.sample, dpmpp_1_step(x, x0, SD.level(300), SD.level(100)).sample)


def test_rising_levels_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(InputError, match="less noisy level"):
        dpmpp_1_step(x, x, SD.level(10), SD.level(20))
    with pytest.raises(InputError, match="less noisy level"):
        dpmpp_2s_step(x, x, SD.level(20), SD.level(30), SD.level(10), lambda y, level: y)
