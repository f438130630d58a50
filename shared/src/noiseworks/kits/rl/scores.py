"""Normalised scores and their intervals."""

from collections.abc import Sequence

import numpy as np
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError


def normalised_score(returns: Sequence[float] | np.ndarray, random: float, expert: float) -> np.ndarray:
    """Return 100 (R - R_random) / (R_expert - R_random) of undiscounted returns, float64, any shape.

    Raises:
        InputError: When the expert's return is not above the random one.
    """
    check_number("random", random)
    check_number("expert", expert)
    if expert <= random:
        raise InputError(
            f"the expert's return must be above the random policy's, got {expert:g} and {random:g}"
        )
    return 100 * (np.asarray(returns, np.float64) - random) / (expert - random)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of values [n] and its 95 % bootstrap interval."""
    values = np.asarray(values, np.float64)
    if not len(values):
        raise InputError("a mean needs at least one value")
    rows = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
