"""The Ornstein-Uhlenbeck process of the survey (section 2): its levels, Tweedie's formula, grids of time.

`dX = -½ X dt + dW`, so that `X_t | X_0 ~ N(a X_0, h I)` with `a = e^{-t/2}` and `h = 1 - e^{-t}`. Times fall from T to
the early stop t_0; everything is float64.
"""

import math

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level
from torch import Tensor

SMALLEST_TIME = 1e-8  # below it 1/h exceeds what float64 resolves in a score


def level(t: Tensor | float) -> Level:
    """Return a(t) and sqrt(h(t)), float64, of times t > 0 (a number or (B,)).

    Raises:
        InputError: When a time is not above 0 (the score of data on a subspace blows up as 1/h there).
    """
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool((t >= SMALLEST_TIME).all()):
        raise InputError(f"times must be at least t_0 = {SMALLEST_TIME:g}, got {float(t.min()):g}")
    return Level(torch.exp(-t / 2), (-torch.expm1(-t)).sqrt())


def tweedie(x: Tensor, score: Tensor, t: Tensor | float) -> Tensor:
    """Return `E[X_0 | X_t = x] = (x + h s) / a`; shapes (B, D)."""
    at = level(t)
    alpha, sigma = (c.reshape(-1, 1) for c in at)
    return (x + sigma**2 * score) / alpha


def noised(x0: Tensor, t: float, generator: torch.Generator | None = None) -> Tensor:
    """Return a draw of X_t given X_0, (B, D) float64."""
    at = level(t)
    return at.alpha * x0 + at.sigma * torch.randn(x0.shape, dtype=torch.float64, generator=generator)


def uniform_times(T: float, t0: float, steps: int) -> Tensor:
    """Return `steps + 1` times from T down to t_0, evenly.

    Raises:
        InputError: Unless 0 <= t_0 < T and there is a step.
    """
    check_number("steps", steps, low=1, integer=True)
    if not 0 <= t0 < T or not math.isfinite(T):
        raise InputError(f"times must satisfy 0 <= t0 < T, got t0 = {t0} and T = {T}")
    return torch.linspace(T, t0, steps + 1, dtype=torch.float64)


def decaying_times(T: float, t0: float, steps: int) -> Tensor:
    """Return `steps + 1` times from T down to t_0 whose steps shrink in proportion to min(1, t) (section 4).

    Near the data a step must be of the order of t, or the variance of a discretised score explodes. Even in
    `u(t) = log t` below 1 and `u(t) = t - 1` above.

    Raises:
        InputError: Unless 0 < t_0 < T and there is a step.
    """
    uniform_times(T, t0, steps)
    if t0 < SMALLEST_TIME:
        raise InputError(f"t0 must be at least {SMALLEST_TIME:g} for decaying steps, got {t0}")
    first, last = (time - 1 if time > 1 else math.log(time) for time in (T, t0))
    u = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    times = torch.where(u > 0, u + 1, u.exp())
    times[0], times[-1] = T, t0
    return times


def initial_divergence(variances: Tensor, mean_square: float, T: float) -> float:
    """Return KL(p_T || N(0, I)) of Gaussian data: what starting from pure noise costs.

    Args:
        variances: (D,), eigenvalues of the data's covariance.
        mean_square: Squared norm of the data's mean.
        T: Length of the forward process.
    """
    away = math.exp(-T) * (variances.double() - 1)  # v_T - 1
    return 0.5 * float((away - torch.log1p(away)).sum() + math.exp(-T) * mean_square)
