"""Guidance policies by name, as the command line takes them."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.linear_ag.artifacts import load_policy
from noiseworks.linear_ag.linear import LinearCoefficients, LinearGuidance, every_second_policy
from noiseworks.linear_ag.policies import (
    AdaptiveGuidance,
    FixedPolicy,
    GuidancePolicy,
    IntervalGuidance,
    ReuseGuidance,
    alternating,
)

FORMS = (
    "ag, cfg, cond, alternating, linear, linear-all, first:0.5 (StepAG), last:0.5, interval:0.2-0.8, reuse:2, "
    "one digit a step, or a folder that calibrate or search wrote"
)
_PARTS = {
    "first": r"(?P<stop>[\d.]+)",
    "last": r"(?P<last>[\d.]+)",
    "interval": r"(?P<start>[\d.]+)-(?P<stop>[\d.]+)",
    "reuse": r"(?P<every>\d+)",
}


@dataclass(frozen=True)
class Ingredients:
    """What named policies are made with.

    Attributes:
        steps: T.
        adaptive: What `ag` means.
        coefficients: What `linear`, `linear-all` and digits with a 3 use, or None.
    """

    steps: int
    adaptive: AdaptiveGuidance = field(default_factory=AdaptiveGuidance)
    coefficients: LinearCoefficients | None = None


def named_policy(name: str, given: Ingredients) -> GuidancePolicy:
    """Return the policy of a name, one of `FORMS`.

    Args:
        name: For instance "ag", "first:0.5" or "2222111111".
        given: Number of steps, threshold and coefficients.

    Raises:
        InputError: When the name is none of these, does not fit the number of steps, or lacks coefficients.
    """
    steps = given.steps
    simple = {
        "ag": given.adaptive,
        "cfg": FixedPolicy(actions="2" * steps),
        "cond": FixedPolicy(actions="1" * steps),
        "alternating": alternating(steps),
    }
    if name in simple:
        return simple[name]
    if needs_coefficients(name):
        return _linear(name, given)
    if name.isdigit():
        if len(name) != steps:
            raise InputError(f"the policy has {len(name)} digits, got --steps {steps}")
        return FixedPolicy(actions=name)
    kind, colon, rest = name.partition(":")
    if colon and kind in _PARTS and (found := re.fullmatch(_PARTS[kind], rest)):
        return _with_number(kind, found.groupdict())
    if Path(name).is_dir():
        return load_policy(name)
    raise InputError(f"policy must be {FORMS}; got {name!r}")


def needs_coefficients(name: str) -> bool:
    """Return whether a name is one of LinearAG's policies."""
    return name in ("linear", "linear-all") or (name.isdigit() and "3" in name)


def _linear(name: str, given: Ingredients) -> LinearGuidance:
    if given.coefficients is None:
        raise InputError(f"policy {name} needs --coefs, a folder that `fit` wrote")
    if given.coefficients.num_steps != given.steps:
        raise InputError(
            f"coefficients are for {given.coefficients.num_steps} steps, got --steps {given.steps}"
        )
    actions = {"linear": "", "linear-all": every_second_policy(given.steps)}.get(name, name)
    return LinearGuidance(coefficients=given.coefficients, actions=actions)


def _with_number(kind: str, parts: dict[str, str]) -> GuidancePolicy:
    if kind == "reuse":
        return ReuseGuidance(every=int(parts["every"]))
    try:
        values = {key: float(value) for key, value in parts.items()}
    except ValueError:
        raise InputError(
            f"policy {kind} needs numbers from 0 to 1, got {', '.join(parts.values())}"
        ) from None
    if kind == "last":
        check_number("last", values["last"], low=0.0, high=1.0)
        return IntervalGuidance(start=1.0 - values["last"])
    return IntervalGuidance(**values)
