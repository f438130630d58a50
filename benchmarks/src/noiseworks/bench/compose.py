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
        saves: Whether it lowers the host's cost. One that changes what the host makes instead is asked to leave the
            other's saving whole, and quality is compared with what the two changes would make together.
    """

    method: str
    host: Host
    attach: Callable[[Any], AbstractContextManager[Any]]
    saves: bool = True


def pair_claim(first: Composable, second: Composable) -> Claim:
    """Return the claim that two methods attached together, `first` first, keep their gains.

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
        statement=_statement(first, second),
        testbed=host.testbed,
        arms=(
            Arm("none", "neither", "baseline"),
            Arm(a, a, "baseline"),
            Arm(b, b, "baseline"),
            Arm("product", "if gains multiply", "reference"),
            Arm("both", f"{a} + {b}", "method"),
        ),
        targets=_pair_targets(first, second),
        scales=host.scales,
        prepare=lambda seed, context: Pair(seed, host.load(context)),
        run=lambda arm, pair, context: _run_pair((first, second), arm, pair, context),
        units=host.units,
        columns=host.columns,
    )


def _statement(first: Composable, second: Composable) -> str:
    savers = [one.method for one in (first, second) if one.saves]
    if len(savers) == 2:
        return f"Attached together, {first.method} and {second.method} save more than either alone and quality holds."
    if not savers:
        return f"Attached together, {first.method} and {second.method} cost no more than one by one."
    other = first.method if second.saves else second.method
    return f"{savers[0]} saves as much beside {other}, and their changes of quality add at most."


def _pair_targets(first: Composable, second: Composable) -> tuple[Target, ...]:
    host, methods = first.host, (first, second)
    cost, quality = host.cost, host.quality
    multiply = ("gains multiply", cost, "both", "product", "ratio", MULTIPLIES, "lower")
    # Savers must keep the host's quality; what changes the images anyway is measured against both changes added.
    reached = "none" if all(one.saves for one in methods) else "product"
    saving = [
        Target(f"{cost} against {alone.method} alone", cost, "both", alone.method, "ratio", SAVES, "lower")
        for alone, added in (methods, methods[::-1])
        if added.saves
    ]
    return (
        *(saving or [Target(*multiply)]),
        *([Target(*multiply, guard=True)] if saving else []),
        Target(quality, quality, "both", reached, "difference", -host.tolerance, "higher", guard=True),
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
