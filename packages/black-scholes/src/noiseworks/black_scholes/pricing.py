"""The Black-Scholes call price, in log space, and the volatilities that a noise schedule gives.

A concept is an asset: spot S is how well the image in the making matches the prompt (0 to 100), strike K a perfect
match, the rate 1 / N, expiry the steps that are left, and volatility the scheduler's own noise (arXiv 2405.13685).
"""

import math
from typing import Literal

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from torch import Tensor

Price = Literal["cdf", "released-density"]
LEAST_SPOT = (
    1e-3  # cosines can be negative; the released code takes absolute values, which rewards the opposite
)
_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


def call_price(
    spot: Tensor | float,
    strike: Tensor | float,
    rate: Tensor | float,
    sigma: Tensor | float,
    tau: Tensor | float,
    *,
    kind: Price = "cdf",
    log: bool = False,
) -> Tensor:
    """Return the price of a European call, float64 of the arguments' common shape.

    C = S Phi(d1) - K e^(-r tau) Phi(d2) with d1 = [ln(S / K) + (r + sigma^2 / 2) tau] / (sigma sqrt(tau)) and
    d2 = d1 - sigma sqrt(tau). Late in a run C falls below what a float can hold, so it is computed as
    S phi(d1) [m(-d1) - m(-d2)] with Mills' ratio m, whose logarithm never underflows.

    Args:
        spot: S > 0; values below 1e-3 count as that.
        strike: K > 0.
        rate: r.
        sigma: Volatility, at least 0; 0 gives the limit max(S - K e^(-r tau), 0).
        tau: Time to expiry, above 0.
        kind: "released-density" replaces Phi(d) by exp(-d^2 / 2), as the released code does. It is 0 for any arguments,
            up to rounding (the identity behind vega), so what is chosen by it is chosen by rounding. For comparison
            with published pictures only.
        log: Return ln C, which is -inf where C is 0; of "cdf" only.

    Raises:
        InputError: When an argument is out of range or not finite.
    """
    check_choice("kind", kind, ("cdf", "released-density"))
    values = [torch.as_tensor(v, dtype=torch.float64) for v in (spot, strike, rate, sigma, tau)]
    device = next((v.device for v in values if v.device.type != "cpu"), values[0].device)
    s, k, r, vol, t = torch.broadcast_tensors(*(v.to(device) for v in values))
    s = s.clamp(min=LEAST_SPOT)
    for name, value, ok in (("strike", k, k > 0), ("sigma", vol, vol >= 0), ("tau", t, t > 0)):
        if not bool((ok & value.isfinite()).all()):
            low = "at least 0" if name == "sigma" else "above 0"
            raise InputError(f"{name} must be finite and {low}, got {value.min().item():g}")
    if not bool((s.isfinite() & r.isfinite()).all()):
        raise InputError("spot and rate must be finite")
    width = (vol * t.sqrt()).clamp(min=1e-300)
    moneyness = (s / k).log() + r * t
    d1 = moneyness / width + width / 2
    d2 = d1 - width
    present = k * (-r * t).exp()
    if kind == "released-density":
        if log:
            raise InputError("the released density has no logarithm: it is 0 up to rounding")
        return s * (-d1.square() / 2).exp() - present * (-d2.square() / 2).exp()
    intrinsic = (s - present).clamp(min=0)
    out = d1 < 1  # out of the money, where the two terms nearly cancel
    d1_out, d2_out = d1.clamp(max=1), torch.minimum(d2, 1 - width)
    gap = (_mills(-d1_out) - _mills(-d2_out)).clamp(min=0)
    log_out = s.log() - d1_out.square() / 2 - _LOG_ROOT_TWO_PI + gap.log()
    inside = s * torch.special.ndtr(d1) - present * torch.special.ndtr(d2)
    log_price = torch.where(out, log_out, inside.log())
    log_price = torch.where(vol == 0, intrinsic.log(), log_price)
    return log_price if log else log_price.exp()


def _mills(x: Tensor) -> Tensor:
    """Return Mills' ratio (1 - Phi(x)) / phi(x)."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(x / math.sqrt(2))


def posterior_sigma(alphas_cumprod: Tensor, timestep: float, earlier: float | None = None) -> float:
    """Return the standard deviation of the posterior between two timesteps.

    The released code asks for one training timestep, t + 1 to t, whatever the sampler's stride:
    sigma^2 = |(1 - a_t) / (1 - a_(t+1)) (1 - a_(t+1) / a_t)|. With `earlier` it is the sampler's own stride, t to
    earlier.

    Args:
        alphas_cumprod: [T], the scheduler's table; t + 1 is kept inside of it.
        timestep: t.
        earlier: The next timestep of the run; below 0 for the last step.
    """
    table = alphas_cumprod.double()
    last = len(table) - 1
    here = min(max(int(timestep), 0), last)
    if earlier is None:
        noisy, clean = table[min(here + 1, last)], table[here]
    else:
        noisy, clean = table[here], table[int(earlier)] if earlier >= 0 else table[0]
    variance = (1 - clean) / (1 - noisy) * (1 - noisy / clean)
    return float(variance.abs().sqrt())
