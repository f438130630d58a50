"""What experiments measure: errors of scores, distances of laws, slopes with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.diffusion_theory.laws import Law, draw
from noiseworks.diffusion_theory.samplers import Score
from torch import Tensor

RESAMPLES = 500


def score_error(found: Score, law: Law, t: float, n: int, generator: torch.Generator) -> tuple[float, float]:
    """Return E|ŝ - s|² under p_t, by n fresh draws, and its standard error (which grows like 1/t)."""
    x = draw(law, n, t, generator)
    errors = (found(x, t) - law.score(x, t)).square().sum(1)
    return float(errors.mean()), float(errors.std() / math.sqrt(n))


def total_variation(p: Tensor, q: Tensor, spacing: float) -> float:
    """Return ½ ∫ |p - q| of densities on one grid, (G,)."""
    return 0.5 * float((p - q).abs().sum()) * spacing


def sliced_w1(x: Tensor, y: Tensor, generator: torch.Generator, directions: int = 32) -> float:
    """Return the Wasserstein-1 distance of two samples (n, D) of one size, averaged over random directions.

    Raises:
        InputError: When the samples differ in size.
    """
    if x.shape != y.shape:
        raise InputError(f"the samples must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    along = torch.randn(x.shape[1], directions, dtype=x.dtype, generator=generator)
    along = along / along.norm(dim=0)
    return float(((x @ along).sort(0).values - (y @ along).sort(0).values).abs().mean())


def nearest_distance(x: Tensor, to: Tensor) -> Tensor:
    """Return each row's distance to the nearest of `to`, (B,)."""
    return torch.cdist(x, to, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def off_support_ratio(x: Tensor, basis: Tensor) -> Tensor:
    """Return |x_⊥| / |x_∥| of each row, (B,)."""
    inside = x @ basis
    rest = x - inside @ basis.T
    return rest.norm(dim=1) / inside.norm(dim=1).clamp(min=1e-12)


def kurtosis(x: Tensor) -> float:
    """Return E(x - m)⁴ / var² of (B,): 3 for a Gaussian, 1 for two points."""
    away = x - x.mean()
    return float(away.pow(4).mean() / away.square().mean() ** 2)


@dataclass(frozen=True)
class Slope:
    """An exponent fitted in logarithms.

    Attributes:
        value: The least-squares slope of the means.
        low: Lower end of its 95 % interval, by bootstrap over seeds.
        high: Upper end.
        r2: Share of the variance explained.
    """

    value: float
    low: float
    high: float
    r2: float


def fit_slope(x: Sequence[float], y: Sequence[Sequence[float]]) -> Slope:
    """Return the exponent of y in x.

    Args:
        x: (m,) positive, at least 2.
        y: For each x one value a seed, positive; a single seed gives an interval of one point.

    Raises:
        InputError: On fewer than two points, or numbers that have no logarithm.
    """
    table = np.asarray(y, dtype=np.float64)
    where = np.log(np.asarray(x, dtype=np.float64))
    if table.ndim != 2 or len(where) != len(table) or len(where) < 2 or not (table > 0).all():
        raise InputError("a slope needs at least two points, each with positive values of every seed")
    rng = np.random.default_rng(0)
    seeds = table.shape[1]
    drawn = [
        _line(where, np.log(table[:, rng.integers(seeds, size=seeds)].mean(1))) for _ in range(RESAMPLES)
    ]
    value, r2 = _fit(where, np.log(table.mean(1)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Slope(value, float(low), float(high), r2)


def _line(x: np.ndarray, y: np.ndarray) -> float:
    away = x - x.mean()
    return float(away @ (y - y.mean()) / (away @ away))


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    slope = _line(x, y)
    left = y - y.mean() - slope * (x - x.mean())
    spread = float(((y - y.mean()) ** 2).sum())
    return slope, 1.0 if spread == 0 else 1 - float((left**2).sum()) / spread
