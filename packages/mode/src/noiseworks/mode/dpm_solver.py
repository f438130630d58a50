"""DPM-Solver in the time t = -ln sigma (Lu et al. 2022): a fixed number of calls, or steps by an error estimate.

Its singlestep solvers of order 1 to 3 integrate the noise e = (a - D) / sigma, of which a denoiser D says enough.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_finite
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
R1, R2 = 1 / 3, 2 / 3  # where the solver of order 3 looks, as shares of its step in ln sigma
FIRST_STEP, SAFETY = 0.05, 0.81


class Leg(NamedTuple):
    """One step of a solver.

    Attributes:
        sigma: Level at its start.
        following: Level at its end.
        order: Calls of the denoiser, 1 to 3.
    """

    sigma: float
    following: float
    order: int

    def levels(self) -> list[float]:
        """Return the levels at which the denoiser is called."""
        places = {1: (), 2: (0.5,), 3: (R1, R2)}[self.order]
        return [self.sigma, *(between(self.sigma, self.following, r) for r in places)]


def between(sigma: float, following: float, share: float) -> float:
    """Return the level at a share of the way in ln sigma."""
    return sigma ** (1 - share) * following**share


def fast_legs(sigmas: Sequence[float]) -> list[Leg]:
    """Return DPM-Solver-fast's steps for as many calls as there are levels above 0; the last call is the step to 0.

    Orders are 3 but for the last ones, and steps are even in ln sigma whatever the grid (Lu et al. 2022, section 3.4).
    """
    calls = len(sigmas) - 2
    if calls < 1:
        return []
    count = calls // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if calls % 3 == 0 else [3] * (count - 1) + [calls % 3]
    ends = [between(sigmas[0], sigmas[-2], i / count) for i in range(count + 1)]
    ends[0], ends[-1] = sigmas[0], sigmas[-2]
    return [Leg(*pair, order) for *pair, order in zip(ends, ends[1:], orders, strict=False)]


def dpm_fast(denoise: Denoiser, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return clean actions by DPM-Solver-fast.

    Args:
        denoise: D(a, sigma).
        x: The start, [B, T, A].
        sigmas: Falling levels, the last one 0; only their ends and their number count.
    """
    for leg in fast_legs(sigmas):
        x = order_step(denoise, x, leg)
    return denoise(x, sigmas[-2])


def dpm_adaptive(
    denoise: Denoiser, x: Tensor, sigmas: Sequence[float], rtol: float = 0.05, atol: float = 0.0078
) -> Tensor:
    """Return clean actions by DPM-Solver-23: order 3, with order 2 to tell its error.

    A step is accepted by the row that is worst off, and its size follows the cube root of the error. As all rows
    share the steps, a row's actions depend a little on the other rows.

    Args:
        denoise: D(a, sigma).
        x: The start, [B, T, A].
        sigmas: Falling levels, the last one 0; only their ends count.
        rtol: Error allowed, over the size of the actions.
        atol: Error allowed in any case.

    Raises:
        NonFiniteError: When the denoiser returns NaN or infinity.
    """
    sigma, last, h, before = sigmas[0], sigmas[-2], FIRST_STEP, x
    while sigma > last * (1 + 1e-5):
        h = min(h, math.log(sigma / last))
        leg = Leg(sigma, sigma * math.exp(-h), 3)
        low, high = _pair(denoise, x, leg)
        check_finite(f"the actions at sigma {sigma:g}", high)
        allowed = (rtol * torch.maximum(low.abs(), before.abs())).clamp_min(atol)
        error = float(((low - high) / allowed).flatten(1).square().mean(1).sqrt().max())
        factor = 1 + math.atan((error + 1e-8) ** (-1 / 3) - 1)
        if factor >= SAFETY:
            before, x, sigma = low, high, leg.following
        h *= factor
    return denoise(x, last)


def _noise(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    return (x - denoise(x, sigma)) / sigma


def _first(x: Tensor, noise: Tensor, h: float, following: float) -> Tensor:
    return x - following * math.expm1(h) * noise


def order_step(denoise: Denoiser, x: Tensor, leg: Leg) -> Tensor:
    """Return the end of a step of order 1, 2 or 3 (Lu et al. 2022, algorithms 1 and 2)."""
    h = math.log(leg.sigma / leg.following)
    if leg.order == 3:
        return _pair(denoise, x, leg)[1]
    noise = _noise(denoise, x, leg.sigma)
    if leg.order == 2:
        middle = leg.levels()[1]
        noise = _noise(denoise, _first(x, noise, h / 2, middle), middle)  # r = 1/2: the midpoint's alone
    return _first(x, noise, h, leg.following)


def _pair(denoise: Denoiser, x: Tensor, leg: Leg) -> tuple[Tensor, Tensor]:
    """Return the step's end by order 2 and by order 3, which share two of the three calls."""
    h = math.log(leg.sigma / leg.following)
    _, one, two = leg.levels()
    noise = _noise(denoise, x, leg.sigma)
    change = _noise(denoise, _first(x, noise, R1 * h, one), one) - noise
    bend = math.expm1(R2 * h) / (R2 * h) - 1
    halfway = _first(x, noise, R2 * h, two) - two * R2 / R1 * bend * change
    late = _noise(denoise, halfway, two) - noise
    end = _first(x, noise, h, leg.following)
    low = end - leg.following * math.expm1(h) / (2 * R1) * change
    high = end - leg.following * (math.expm1(h) / h - 1) / R2 * late
    return low, high
