"""Guidance policies by name, as the command line takes them; names are checked without anything heavy."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.linear_ag.options import Aim, Contest, Making

if TYPE_CHECKING:
    from noiseworks.linear_ag.linear import LinearCoefficients
    from noiseworks.linear_ag.policies import AdaptiveGuidance, GuidancePolicy

FORMS = (
    "ag, ag:0.8 (keeps the last difference, times 0.8 a step), cfg, cond, alternating, linear, linear-all, "
    "first:0.5 (StepAG), last:0.5, interval:0.2-0.8, reuse:2, reuse:3-0.25 (after a guided quarter), one digit "
    "a step, or a folder that calibrate or search wrote"
)
_PLAIN = ("ag", "cfg", "cond", "alternating", "linear", "linear-all")
_NUMBER = r"([0-9]*\.?[0-9]+)"
_FORMS = {
    "ag": _NUMBER,
    "first": _NUMBER,
    "last": _NUMBER,
    "interval": f"{_NUMBER}-{_NUMBER}",
    "reuse": f"([0-9]+)(?:-{_NUMBER})?",
}


@dataclass(frozen=True)
class Ingredients:
    """What named policies are made with.

    Attributes:
        steps: T.
        adaptive: What `ag` means; None for its defaults.
        coefficients: What `linear`, `linear-all` and digits with a 3 use, or None.
    """

    steps: int
    adaptive: "AdaptiveGuidance | None" = None
    coefficients: "LinearCoefficients | None" = None

    @classmethod
    def of(cls, making: Making, steps: int) -> "Ingredients":
        """Return what the command line names."""
        from noiseworks.linear_ag.linear import LinearCoefficients
        from noiseworks.linear_ag.policies import AdaptiveGuidance

        adaptive = AdaptiveGuidance(making.threshold, space=making.space)
        found = None if making.coefs is None else LinearCoefficients.from_pretrained(making.coefs)
        return cls(steps, adaptive, found)


def parse(name: str, steps: int) -> tuple[str, tuple[float, ...]]:
    """Return the kind of a policy's name and its numbers.

    Args:
        name: One of `FORMS`.
        steps: T.

    Raises:
        InputError: When the name is none of these, or does not fit the number of steps.
    """
    if name in _PLAIN:
        return name, ()
    if re.fullmatch("[0-9]+", name):
        if len(name) != steps:
            raise InputError(f"the policy has {len(name)} digits, got --num-inference-steps {steps}")
        return "digits", ()
    kind, colon, rest = name.partition(":")
    if colon and kind in _FORMS and (found := re.fullmatch(_FORMS[kind], rest)):
        numbers = tuple(float(number) for number in found.groups() if number is not None)
        for place, number in enumerate(numbers):
            limits = {"low": 1} if kind == "reuse" and not place else {"low": 0, "high": 1}
            check_number(f"policy {kind}", number, **limits)
        return kind, numbers
    if Path(name).is_dir():
        return "folder", ()
    raise InputError(f"policy must be {FORMS}; got {name!r}")


def parse_numbered(name: str, steps: int) -> tuple[int, str]:
    """Return the number of steps and the policy's name: `cfg:15` is full guidance in 15 steps.

    Raises:
        InputError: As in `parse`.
    """
    found = re.fullmatch("cfg:([1-9][0-9]*)", name)
    if found:
        return int(found[1]), "cfg"
    parse(name, steps)
    return steps, name


def check_contest(contest: Contest, steps: int) -> None:
    """Refuse a contest that cannot be held.

    Raises:
        InputError: When a name is no policy's, or `target_nfe` is outside of T + 1 to 2 T.
    """
    for name in contest.names:
        parse_numbered(name, steps)
    if contest.target_nfe is not None:
        Aim(target_nfe=contest.target_nfe).check_given(steps)


def needs_coefficients(name: str) -> bool:
    """Return whether a name is one of LinearAG's policies."""
    return name in ("linear", "linear-all") or (name.isdigit() and "3" in name)


def named_policy(name: str, given: Ingredients) -> "GuidancePolicy":
    """Return the policy of a name, one of `FORMS`.

    Args:
        name: For instance "ag", "first:0.5" or "2222111111".
        given: Number of steps, threshold and coefficients.

    Raises:
        InputError: When the name is none of these, does not fit the number of steps, or lacks coefficients.
    """
    kind, numbers = parse(name, given.steps)
    if needs_coefficients(name):
        return _linear(name, given)
    from noiseworks.linear_ag import policies
    from noiseworks.linear_ag.artifacts import load_policy

    match kind:
        case "ag":
            adaptive = given.adaptive or policies.AdaptiveGuidance()
            return replace(adaptive, decay=numbers[0]) if numbers else adaptive
        case "cfg" | "cond":
            return policies.FixedPolicy({"cfg": "2", "cond": "1"}[kind] * given.steps)
        case "alternating":
            return policies.alternating(given.steps)
        case "digits":
            return policies.FixedPolicy(name)
        case "folder":
            return load_policy(name)
        case "reuse":
            return policies.ReuseGuidance(int(numbers[0]), *numbers[1:])
        case "first":
            return policies.IntervalGuidance(stop=numbers[0])
        case "last":
            return policies.IntervalGuidance(start=1.0 - numbers[0])
    return policies.IntervalGuidance(*numbers)


def numbered_policy(name: str, given: Ingredients) -> "tuple[int, GuidancePolicy]":
    """Return the number of steps and the policy of a name of `parse_numbered`."""
    steps, plain = parse_numbered(name, given.steps)
    return steps, named_policy(plain, replace(given, steps=steps))


def _linear(name: str, given: Ingredients) -> "GuidancePolicy":
    from noiseworks.linear_ag.linear import LinearGuidance, every_second_policy

    if given.coefficients is None:
        raise InputError(f"policy {name} needs --coefs, a folder that `fit` wrote")
    if given.coefficients.num_steps != given.steps:
        raise InputError(
            f"coefficients are for {given.coefficients.num_steps} steps, got --num-inference-steps {given.steps}"
        )
    actions = {"linear": "", "linear-all": every_second_policy(given.steps)}.get(name, name)
    return LinearGuidance(coefficients=given.coefficients, actions=actions)
