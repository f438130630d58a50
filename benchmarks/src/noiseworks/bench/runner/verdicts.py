"""The rules by which intervals become verdicts; without numpy, so that what only shows verdicts is quick to load."""

from collections.abc import Sequence
from dataclasses import dataclass

from noiseworks.bench.claims import Target, Verdict


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: The statistic of the measurements.
        low: Lower end of the 95 % interval.
        high: Upper end.
        seeds: Number of seeds.
        observations: Number of (seed, unit) pairs; with a single one there is no spread to estimate and the
            interval is a point.
    """

    value: float
    low: float
    high: float
    seeds: int
    observations: int


def target_verdict(target: Target, estimate: Estimate) -> Verdict:
    """Return what an interval says about a target.

    An effect holds when the interval clears the threshold, holds partly when it only clears the value that
    means "nothing changed", is worse when it lies on the other side of that value, else has no effect. A
    guard holds when the interval stays on the good side of the threshold, is worse when it lies wholly
    beyond it, else partly. A single observation has no spread, so it holds at most partly.
    """
    sign = 1.0 if target.better == "higher" else -1.0
    bad, good = sorted((sign * estimate.low, sign * estimate.high))
    threshold = sign * target.threshold
    slack = 1e-9 * max(1.0, abs(threshold))  # rounding of sums, where an interval is a point on the threshold
    no_effect = sign * no_effect_value(target)
    alone = estimate.observations == 1
    if target.guard:
        if bad >= threshold - slack:
            return "partly" if alone else "holds"
        return "worse" if good < threshold - slack else "partly"
    if bad > no_effect + slack:
        return "holds" if bad >= threshold - slack and not alone else "partly"
    return "worse" if good < no_effect - slack else "no effect"


def no_effect_value(target: Target) -> float:
    """Return the value that means that nothing changed: 0 for differences and 1 for ratios, unless stated."""
    if target.no_effect is not None:
        return target.no_effect
    return 0.0 if target.kind == "difference" else 1.0


def claim_verdict(targets: Sequence[Target], verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of a claim: the first target is the effect, the others are conditions on it."""
    if verdicts[0] != "holds":
        return verdicts[0]
    if all(verdict == "holds" for verdict in verdicts):
        return "holds"
    guarded = zip(targets, verdicts, strict=True)
    return "worse" if any(target.guard and verdict == "worse" for target, verdict in guarded) else "partly"


def deciding_target(targets: Sequence[Target], verdicts: Sequence[Verdict]) -> int:
    """Return the index of the target that decided a claim's verdict; of the first one where all hold."""
    claim = claim_verdict(targets, verdicts)
    if verdicts[0] != "holds" or claim == "holds":
        return 0
    return next(
        index
        for index, (target, verdict) in enumerate(zip(targets, verdicts, strict=True))
        if verdict != "holds" and (claim != "worse" or (target.guard and verdict == "worse"))
    )
