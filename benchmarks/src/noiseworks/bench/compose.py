"""How methods that attach to one host are measured together.

A method that can be composed registers a `Composable` under the entry-point group `noiseworks.compose`. Two
of them with the same `Host` make a claim with the arms none, each alone, both, and `product`: what both
would reach if the gains multiplied and the changes of quality added.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.core.errors import InputError

# A pair adds to a method alone when it saves at least this share more, and multiplies within this share.
SAVES, MULTIPLIES = 0.98, 1.05


@dataclass(frozen=True)
class Host:
    """A kind of object that methods attach to, and how a run of it is measured.

    Attributes:
        name: Name of the family; two methods compose when they name the same one.
        testbed: Name of the testbed.
        load: `load(context)` returns the host, loaded once a process.
        measure: `measure(host, seed, context)` runs the host as it stands and returns its measurement.
        cost: Metric to lower (network calls, seconds), positive.
        quality: Metric to keep, higher is better.
        tolerance: Loss of quality that is accepted.
        units: What one value of a list metric belongs to.
        scales: Scale name -> what is run.
        columns: Metric -> label.
    """

    name: str
    testbed: str
    load: Callable[[Context], Any]
    measure: Callable[[Any, int, Context], Measurement]
    cost: str
    quality: str
    tolerance: float
    units: str
    scales: Mapping[ScaleName, Scale]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Composable:
    """A method as it attaches to a host.

    Attributes:
        method: The package's slug.
        host: The host family.
        attach: `attach(host)` is a context manager: attached inside, restored after.
    """

    method: str
    host: Host
    attach: Callable[[Any], AbstractContextManager[Any]]


def pair_claim(first: Composable, second: Composable) -> Claim:
    """Return the claim that two methods attached together, `first` outermost, keep their gains.

    Raises:
        InputError: When their hosts differ.
    """
    if first.host.name != second.host.name:
        raise InputError(
            f"{first.method} attaches to {first.host.name} and {second.method} to {second.host.name}; "
            "compose needs one host"
        )
    host, a, b = first.host, first.method, second.method
    return Claim(
        method=f"{a}+{b}",
        paper=f"{a} and {b} on one {host.name}",
        statement=f"Attached together, {a} and {b} save more than either alone and quality holds.",
        testbed=host.testbed,
        arms=(
            Arm("none", "neither", "baseline"),
            Arm(a, a, "baseline"),
            Arm(b, b, "baseline"),
            Arm("product", "if gains multiply", "reference"),
            Arm("both", f"{a} + {b}", "method"),
        ),
        targets=_pair_targets(host, a, b),
        scales=host.scales,
        prepare=lambda seed, context: Pair(seed, host.load(context)),
        run=lambda arm, pair, context: _run_pair((first, second), arm, pair, context),
        units=host.units,
        columns=host.columns,
    )


def _pair_targets(host: Host, a: str, b: str) -> tuple[Target, ...]:
    cost, quality = host.cost, host.quality
    return (
        Target(f"{cost} against {a} alone", cost, "both", a, "ratio", SAVES, "lower"),
        Target(f"{cost} against {b} alone", cost, "both", b, "ratio", SAVES, "lower"),
        Target("gains multiply", cost, "both", "product", "ratio", MULTIPLIES, "lower", guard=True),
        Target(quality, quality, "both", "none", "difference", -host.tolerance, "higher", guard=True),
    )


@dataclass
class Pair:
    """What the arms of a pair share: the loaded host, and what the arms before measured."""

    seed: int
    loaded: Any
    measured: dict[str, Measurement] = field(default_factory=dict)


def _run_pair(methods: tuple[Composable, Composable], arm: str, pair: Pair, context: Context) -> Measurement:
    """Measure the host with the arm's methods attached; `product` is computed from the three arms before it."""
    family = methods[0].host
    if arm == "product":
        parts = [pair.measured[name] for name in ("none", *(method.method for method in methods))]
        return Measurement(expected_metrics(family, *(part.metrics for part in parts)))
    with ExitStack() as stack:
        for method in methods:
            if arm in (method.method, "both"):
                stack.enter_context(method.attach(pair.loaded))
        measurement = family.measure(pair.loaded, pair.seed, context)
    pair.measured[arm] = measurement
    return measurement


def expected_metrics(
    host: Host,
    none: Mapping[str, float | Sequence[float]],
    first: Mapping[str, float | Sequence[float]],
    second: Mapping[str, float | Sequence[float]],
) -> dict[str, Any]:
    """Return cost `a·b / none` and quality `a + b - none` of each unit: what independent gains would give."""

    def values(metrics: Mapping[str, float | Sequence[float]], name: str) -> np.ndarray:
        return np.asarray(metrics[name], dtype=np.float64)

    cost = values(first, host.cost) * values(second, host.cost) / values(none, host.cost)
    quality = values(first, host.quality) + values(second, host.quality) - values(none, host.quality)
    return {host.cost: cost, host.quality: quality}
