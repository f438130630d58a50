"""Paired bootstrap intervals of what was measured, and the preconditions; the verdicts are `verdicts.py`.

An interval is the 95 % percentile interval of a hierarchical bootstrap: seeds are drawn with replacement,
then the units (prompts, problems, episodes) inside each drawn seed. Values of the two arms are drawn
together, so the pairing survives. The generator is fixed: the same measurements always give the same verdict.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from noiseworks.bench.claims import Ceiling, Floor, Target
from noiseworks.bench.runner.verdicts import Estimate
from noiseworks.core.errors import InputError

RESAMPLES = 4000
LEVEL = 0.95
GENERATOR_SEED = 20240607

Values = Sequence[float | Sequence[float]]


def resampled_sums(
    columns: Sequence[Sequence[np.ndarray]], resamples: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draw seeds, then units, and return the sums of each column's drawn values.

    How often the units of a seed are drawn is multinomial, so a resample is a vector of counts and its sums
    are one matrix product a seed.

    Args:
        columns: For each column one array of values a seed; the columns have equal lengths seed by seed.
        resamples: Number R of resamples.

    Returns:
        For each column an array `[R]` of sums, and the numbers of drawn values `[R]`.
    """
    counts, drawn = _drawn_counts(tuple(len(values) for values in columns[0]), resamples)
    sums = [np.zeros(resamples) for _ in columns]
    for seed, times in enumerate(counts):
        for total, column in zip(sums, columns, strict=True):
            total += times @ column[seed]
    return sums, drawn


@lru_cache(maxsize=4)  # the metrics of a claim have few different sizes, and drawing costs more than summing
def _drawn_counts(sizes: tuple[int, ...], resamples: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return how often each unit is drawn, `[resamples, units]` a seed, and the numbers of drawn values."""
    generator = np.random.default_rng(GENERATOR_SEED)
    seeds = len(sizes)
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    counts = [
        generator.multinomial(drawn[:, seed] * size, np.full(size, 1 / size)).astype(np.float64)
        for seed, size in enumerate(sizes)
    ]
    return counts, drawn @ np.array(sizes)


def estimate_mean(values: Values, resamples: int = RESAMPLES) -> Estimate:
    """Return the mean of a metric over all seeds and units, with its interval."""
    column = as_columns(values)
    pooled = np.concatenate(column)
    (sums,), sizes = resampled_sums([column], resamples)
    return _interval(float(pooled.mean()), sums / sizes, column)


def estimate_contrast(
    kind: str, arm: Values, *against: Values, better: str = "higher", resamples: int = RESAMPLES
) -> Estimate:
    """Return the paired difference or ratio of two arms' means, with its interval.

    Args:
        kind: `difference` (mean of arm - mean of against) or `ratio` (mean of arm / mean of against).
        arm: One number or list of numbers (one a unit) for each seed.
        against: The same for the other arm; unit i of seed s belongs to unit i of seed s of `arm`. Of several
            arms the best one by mean counts, chosen anew in each resample.
        better: Whether the best arm is the one of the `higher` or of the `lower` mean.
        resamples: Number of bootstrap resamples.

    Raises:
        InputError: When the arms have different seeds or units, or a ratio's denominator can be 0.
    """
    columns = [as_columns(values) for values in (arm, *against)]
    a = columns[0]
    for b in columns[1:]:
        if [len(values) for values in a] != [len(values) for values in b]:
            raise InputError(
                "the two arms are not paired: their numbers of values a seed are "
                f"{[len(values) for values in a]} and {[len(values) for values in b]}; measure the same units"
            )
    (a_sums, *rivals), sizes = resampled_sums(columns, resamples)
    best = np.max if better == "higher" else np.min
    b_sums = best(rivals, axis=0)
    a_mean, *means = (float(np.concatenate(column).mean()) for column in columns)
    b_mean = float(best(means))
    if kind == "difference":
        return _interval(a_mean - b_mean, (a_sums - b_sums) / sizes, a)
    if b_mean == 0 or (np.sign(b_sums) != np.sign(b_mean)).any():
        raise InputError(
            f"a ratio to a baseline whose mean ({b_mean:g}) can be 0 says nothing; use a difference"
        )
    return _interval(a_mean / b_mean, a_sums / b_sums, a)


def as_columns(values: Values) -> list[np.ndarray]:
    """Return one float64 array a seed; a single number becomes an array of one.

    Raises:
        InputError: When there is no seed, or a seed without values.
    """
    columns = [np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values]
    if not columns or any(column.ndim != 1 or column.size == 0 for column in columns):
        raise InputError("a metric needs at least one seed with at least one value, in one flat list a seed")
    return columns


def _interval(value: float, resampled: np.ndarray, column: Sequence[np.ndarray]) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(column), sum(len(values) for values in column))


def judge_target(target: Target, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Estimate:
    """Return a target's estimate from the measurements of all seeds.

    Args:
        target: The comparison.
        measured: Arm -> one mapping of metrics for each seed, in the same order of seeds.

    Raises:
        InputError: Naming the target, when its values cannot be compared.
    """
    columns = [
        [metrics[target.metric] for metrics in measured[name]] for name in (target.arm, *target.rivals)
    ]
    try:
        return estimate_contrast(target.kind, *columns, better=target.better)
    except InputError as error:
        raise InputError(f"target {target.name!r}: {error}") from error


def condition_value(condition: Floor | Ceiling, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    """Return what a precondition looks at: a mean over units and then seeds, or the gain or share that it asks for.

    Args:
        condition: The precondition.
        measured: Arm -> one mapping of metrics for each seed.

    Raises:
        InputError: When an arm did not measure what it needs.
    """

    def mean(arm: str) -> float:
        missing = {condition.metric, condition.over or condition.metric} - set(measured[arm][0])
        if missing:
            raise InputError(f"a precondition needs {', '.join(sorted(missing))}, which arm {arm!r} lacks")
        values = [np.mean(metrics[condition.metric]) for metrics in measured[arm]]
        if condition.over is not None:
            values = [
                v / np.mean(metrics[condition.over]) for v, metrics in zip(values, measured[arm], strict=True)
            ]
        return float(np.mean(values))

    value = mean(condition.arm)
    return value if condition.against is None else value - mean(condition.against)


def void_reason(
    conditions: Sequence[Floor | Ceiling], measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str | None:
    """Return why a claim says nothing on what was measured, or None when all preconditions are met."""
    for condition in conditions:
        value = condition_value(condition, measured)
        if not condition.met(value):
            return condition.sentence.format(value)
    return None
