"""Prices against closed forms, printed values and limits."""

import math

import pytest
import torch
from noiseworks.black_scholes.pricing import call_price, posterior_sigma
from noiseworks.core.errors import InputError
from scipy.stats import norm


def draws(n, *ranges):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(ranges), n, generator=generator, dtype=torch.float64)
    return [low + (high - low) * u for u, (low, high) in zip(uniform, ranges, strict=True)]


RANGES = ((1, 100), (100, 100), (0, 0.1), (0.01, 1), (1, 100))


def table():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@pytest.mark.parametrize(
    ("arguments", "price"),
    [
        ((100, 100, 0.05, 0.2, 1), 10.4505836),
        ((25, 100, 0.01, 0.2, 100), 15.4707764),
        ((30, 100, 0.01, 0.2, 100), 19.4873524),
    ],
)
def test_prices_of_the_textbook(arguments, price):
    assert float(call_price(*arguments)) == pytest.approx(price, abs=1e-7)


@pytest.mark.parametrize(
    ("step", "spot", "price"),
    [
        (0, 20, 2.398738),
        (0, 25, 4.380405),
        (0, 30, 6.879720),
        (25, 20, 0.00164308),
        (25, 25, 0.0182140),
        (25, 30, 0.0985492),
    ],
)
def test_prices_along_fifty_ddim_steps(step, spot, price):
    # The printed figures come from float32 arithmetic, which holds five digits of the volatility.
    sigma = posterior_sigma(table(), 980 - 20 * step)
    found = float(call_price(spot, 100, 1 / 50, sigma, 50 - step))
    assert found == pytest.approx(price, rel=1e-4)
    assert found == pytest.approx(closed_form(spot, 100, 1 / 50, sigma, 50 - step), rel=1e-9)


def closed_form(s, k, r, sigma, tau):
    width = sigma * math.sqrt(tau)
    d1 = (math.log(s / k) + r * tau) / width + width / 2
    return s * norm.cdf(d1) - k * math.exp(-r * tau) * norm.cdf(d1 - width)


def test_prices_are_the_closed_form_s():
    for arguments in zip(*(values[:200].tolist() for values in draws(200, *RANGES)), strict=True):
        assert float(call_price(*arguments)) == pytest.approx(closed_form(*arguments), rel=1e-8, abs=1e-11)


@pytest.mark.parametrize(
    ("timestep", "sigma"),
    [(980, 0.1080924), (740, 0.0887607), (480, 0.0677925), (240, 0.0484209), (0, 0.0206482)],
)
def test_volatility_is_the_posterior_of_one_training_timestep(timestep, sigma):
    found = posterior_sigma(table(), timestep)
    assert found == pytest.approx(sigma, rel=1e-5)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    beta, (noisy, clean) = betas[timestep + 1], (table()[timestep + 1], table()[timestep])
    assert found == pytest.approx(math.sqrt(beta * (1 - clean) / (1 - noisy)), rel=1e-10)


def test_the_last_timestep_of_training_does_not_run_over_the_table():
    assert posterior_sigma(table(), 999) == 0.0
    assert posterior_sigma(table(), 980, 960) > 4 * posterior_sigma(table(), 980)


def test_log_price_is_exact_where_the_price_underflows():
    # Mills' ratio to three terms is exact enough so far out of the money.
    late = float(call_price(25, 100, 1 / 50, posterior_sigma(table(), 0), 1, log=True))
    assert float(call_price(25, 100, 1 / 50, posterior_sigma(table(), 0), 1)) == 0.0
    sigma = posterior_sigma(table(), 0)
    d1 = (math.log(0.25) + 0.02 + sigma**2 / 2) / sigma
    x, y = -d1, -d1 + sigma
    mills = [1 / z - 1 / z**3 + 3 / z**5 for z in (x, y)]
    expected = math.log(25) - d1**2 / 2 - 0.5 * math.log(2 * math.pi) + math.log(mills[0] - mills[1])
    assert late == pytest.approx(expected, rel=1e-8)


def test_put_call_parity_and_bounds():
    s, k, r, sigma, tau = draws(2000, *RANGES)
    call = call_price(s, k, r, sigma, tau)
    width = sigma * tau.sqrt()
    d1 = ((s / k).log() + r * tau) / width + width / 2
    put = k * (-r * tau).exp() * torch.special.ndtr(width - d1) - s * torch.special.ndtr(-d1)
    torch.testing.assert_close(call - put, s - k * (-r * tau).exp(), atol=1e-9, rtol=0)
    assert bool((call <= s + 1e-12).all())
    assert bool((call >= (s - k * (-r * tau).exp()).clamp(min=0) - 1e-9).all())


def test_prices_rise_with_spot_and_volatility_and_fall_with_the_strike():
    s, k, r, sigma, tau = draws(2000, (5, 90), (50, 150), *RANGES[2:])
    log = call_price(s, k, r, sigma, tau, log=True)
    assert bool((call_price(s * 1.01, k, r, sigma, tau, log=True) > log).all())
    assert bool((call_price(s, k * 1.01, r, sigma, tau, log=True) < log).all())
    assert bool((call_price(s, k, r, sigma * 1.01, tau, log=True) >= log).all())


def test_at_one_strike_the_cheapest_call_is_that_of_the_lowest_score():
    generator = torch.Generator().manual_seed(1)
    scores = 15 + 20 * torch.rand(100_000, 2, generator=generator, dtype=torch.float64)
    tau = torch.randint(1, 51, (100_000, 1), generator=generator)
    sigma = 0.02 + 0.09 * torch.rand(100_000, 1, generator=generator, dtype=torch.float64)
    prices = call_price(scores, 100, 0.02, sigma, tau, log=True)
    assert bool((prices.argmin(1) == scores.argmin(1)).all())


def test_no_volatility_is_the_limit_of_little():
    expected = max(90 - 80 * math.exp(-0.1), 0)
    assert float(call_price(90, 80, 0.1, 0, 1)) == pytest.approx(expected)
    assert float(call_price(90, 80, 0.1, 1e-6, 1)) == pytest.approx(expected)
    assert float(call_price(50, 80, 0.1, 0, 1, log=True)) == -math.inf


def test_the_released_density_prices_everything_at_nothing():
    s, k, r, sigma, tau = draws(5000, *RANGES)
    assert float(call_price(s, k, r, sigma, tau, kind="released-density").abs().max()) < 1e-12


@pytest.mark.parametrize(
    "bad", [{"strike": 0}, {"sigma": -1}, {"tau": 0}, {"sigma": math.nan}, {"spot": math.inf}]
)
def test_what_cannot_be_priced_is_refused(bad):
    arguments = {"spot": 25.0, "strike": 100.0, "rate": 0.02, "sigma": 0.1, "tau": 5.0} | bad
    with pytest.raises(InputError, match=next(iter(bad))):
        call_price(**arguments)
