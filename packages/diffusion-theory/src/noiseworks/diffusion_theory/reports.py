"""What an experiment found, and whether that agrees with its rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "violates", "not resolved at this size"]
NONE = 0.5  # what a count that must be 0 is compared with


@dataclass(frozen=True)
class Check:
    """One number and what the rule allows, fixed before the experiment.

    Attributes:
        name: What was measured.
        value: The number, at least 0.
        allowed: The largest that the rule allows, above 0.
        uncertainty: Half the 95 % interval of the number; a number that is beyond by less is not resolved.
    """

    name: str
    value: float
    allowed: float
    uncertainty: float = 0.0

    @property
    def excess(self) -> float:
        """The number over what is allowed: at most 1 within the rule."""
        return self.value / self.allowed


@dataclass(frozen=True)
class Report:
    """The outcome of one experiment.

    Attributes:
        name: Of the experiment, such as E1.
        statement: What the theory says.
        checks: The numbers that the rule reads.
        rows: Further numbers.
        series: Curve -> (x, y), for the figure.
        axes: Labels of x and y.
        caveat: What the experiment does not say.
    """

    name: str
    statement: str
    checks: Sequence[Check]
    rows: Sequence[Mapping[str, Any]] = ()
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")
    caveat: str = ""

    @property
    def excess(self) -> float:
        """The largest excess of its checks."""
        return max(check.excess for check in self.checks)

    @property
    def verdict(self) -> Verdict:
        """Whether all checks are within the rule, one is beyond it, or one is beyond within its uncertainty."""
        over = [check for check in self.checks if not check.excess <= 1]
        if any(not check.value - check.uncertainty <= check.allowed for check in over):
            return "violates"
        return "not resolved at this size" if over else "holds"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        checks = [{**vars(check), "excess": check.excess} for check in self.checks]
        return {
            "experiment": self.name,
            "statement": self.statement,
            "verdict": self.verdict,
            "checks": checks,
            "rows": [dict(row) for row in self.rows],
            "series": {name: {"x": list(x), "y": list(y)} for name, (x, y) in self.series.items()},
            "axes": list(self.axes),
            "caveat": self.caveat,
        }


def above(name: str, value: float, least: float) -> Check:
    """Return the check that a number is at least `least` (both above 0), as an inverse that must be at most 1."""
    return Check(f"{least:g} over {name}", least / max(value, 1e-12), 1.0)
