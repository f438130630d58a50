"""Reverse processes with any score, and the exact spread of their discretisations on Gaussian data (section 4).

The reverse SDE is `dY = [½ Y + s] ds + dW`, the probability flow `dY = ½ [Y + s] ds`, with s counted from T to t_0.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from noiseworks.core.checks import check_choice, check_finite
from noiseworks.core.steps import ddim_step
from noiseworks.diffusion_theory.process import level
from torch import Tensor

Score = Callable[[Tensor, float], Tensor]
Kind = Literal["em", "exponential", "euler", "heun", "ddim"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ORDERS = {"em": 1, "exponential": 1, "euler": 1, "heun": 2, "ddim": 1}
_RANDOM = ("em", "exponential")


def integrate(
    score: Score,
    x: Tensor,
    times: Tensor,
    kind: Kind = "exponential",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return samples at the last of `times`, from x at the first.

    Args:
        score: (x (B, D), t) -> (B, D).
        x: (B, D) float64; N(0, I) where T is large.
        times: (N + 1,), falling.
        kind: em or exponential (SDE, order 1); euler or ddim (probability flow, order 1); heun (order 2).
        generator: Of the SDE's noise.

    Raises:
        NonFiniteError: When samples are not finite.
    """
    check_choice("kind", kind, KINDS)
    for index, (t, low) in enumerate(pairwise(times.tolist())):
        x = step(score, x, t, low, kind, generator)
        check_finite("samples", x, index)
    return x


def step(
    score: Score, x: Tensor, t: float, low: float, kind: Kind, generator: torch.Generator | None = None
) -> Tensor:
    """Return x one step further, from time t down to `low`."""
    delta, s = t - low, score(x, t)
    if kind == "ddim":
        at = level(t)
        clean = (x + at.sigma**2 * s) / at.alpha
        below = level(low) if low > 0 else at._replace(alpha=torch.ones_like(at.alpha), sigma=at.sigma * 0)
        return ddim_step(x, clean, at, below).sample
    if kind in ("euler", "heun"):
        slope = (x + s) / 2
        moved = x + delta * slope
        if kind == "euler" or low <= 0:
            return moved
        return x + delta / 2 * (slope + (moved + score(moved, low)) / 2)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    gain, weight, variance = _sde(delta, kind)
    return gain * x + weight * s + variance**0.5 * noise


def _sde(delta: float, kind: str) -> tuple[float, float, float]:
    """Return the factors of x and of the score, and the variance of the noise, of a step of the SDE."""
    if kind == "em":
        return 1 + delta / 2, delta, delta
    grown = float(torch.tensor(delta / 2, dtype=torch.float64).expm1())  # e^{δ/2} - 1
    return 1 + grown, 2 * grown, (1 + grown) ** 2 - 1


def gaussian_variance(
    variances: Tensor, times: Tensor, kind: Kind, *, start: Literal["noise", "exact"] = "noise"
) -> Tensor:
    """Return the variance of samples of N(0, v) with the exact score: `V <- g² V + noise`, no sampling.

    Args:
        variances: v, (D,) float64.
        times: (N + 1,), falling.
        kind: The sampler.
        start: noise for N(0, 1), exact for the process's own law at T.

    Returns:
        (D,); the exact answer is `a² v + h` at the last time.
    """
    check_choice("kind", kind, KINDS)
    v0 = variances.double()
    V = torch.ones_like(v0) if start == "noise" else marginal_variance(v0, float(times[0]))
    for t, low in pairwise(times.tolist()):
        if kind in _RANDOM:
            gain, weight, noise = _sde(t - low, kind)
            V = (gain - weight / marginal_variance(v0, t)) ** 2 * V + noise
        else:
            one = step(lambda x, t: -x / marginal_variance(v0, t), torch.ones_like(v0)[None], t, low, kind)
            V = one[0] ** 2 * V
    return V


def marginal_variance(variances: Tensor, t: float) -> Tensor:
    """Return a² v + h at time t, also at 0."""
    fade = torch.exp(-torch.tensor(t, dtype=torch.float64))
    return fade * variances + (1 - fade)


def gaussian_divergence(found: Tensor, true: Tensor) -> float:
    """Return KL(N(0, true) || N(0, found)) of diagonal Gaussians, summed over dimensions."""
    ratio = true / found
    return 0.5 * float((ratio - 1 - ratio.log()).sum())
