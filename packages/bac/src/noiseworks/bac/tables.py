"""What the commands show: a plan as a table of marks, and rows of figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from noiseworks.bac.choosing import Tried
from noiseworks.bac.plan import CachePlan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PlanView:
    """A plan as the command shows it.

    Attributes:
        out: Where it was written, or None.
        plan: The plan.
        tried: What was measured to choose it, cheapest first.
    """

    out: Path | None
    plan: CachePlan
    tried: tuple[Tried, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's figures and schedules."""
        plan = self.plan
        return {
            "out": None if self.out is None else str(self.out),
            "method": plan.method,
            "steps": plan.num_steps,
            "share": plan.share,
            "settings": plan.settings,
            "schedules": {name: plan.schedule(name) for name in plan.blocks},
            "tried": [{**_named(one.plan), "cost": one.plan.cost, "error": one.error} for one in self.tried],
        }

    def __rich__(self) -> "Table":
        """Return a table: a row for each block, a mark where it is computed."""
        from rich.table import Table

        plan = self.plan
        table = Table(
            title=f"{plan.method}: {plan.share:.1%} of the blocks are computed", caption=self._said()
        )
        for name in ("block", "updates", f"steps 0 to {plan.num_steps - 1}"):
            table.add_column(name, no_wrap=True)
        edges = np.linspace(0, plan.num_steps, min(50, plan.num_steps) + 1).astype(int)
        for name, row in zip(plan.blocks, plan.table, strict=True):
            marks = (row[a:b].sum() for a, b in pairwise(edges))
            text = "".join("·" if not count else "▪" if count == 1 else "█" for count in marks)
            table.add_row(name, str(int(row.sum())), text)
        return table

    def _said(self) -> str | None:
        rows = [f"{_named(one.plan)['plan']}: error {one.error:.2f}" for one in self.tried]
        return "tried, the cheapest first: " + "; ".join(rows) if rows else None


def _named(plan: CachePlan) -> dict[str, Any]:
    return {"plan": f"{plan.method}, {int(plan.updates.max())} updates", "share": plan.share}


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        rows: Arm -> figures.
    """

    rows: Mapping[str, Mapping[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {name: dict(row) for name, row in self.rows.items()}

    def __rich__(self) -> "Table":
        """Return a table, one row for each arm."""
        from rich.table import Table

        columns = ("arm", "ms", "times faster", "calls", "MiB", "blocks computed", "error of the outcome")
        table = Table(*columns)
        for name, row in self.rows.items():
            share = "" if row["share"] is None else f"{row['share']:.1%}"
            times = (f"{row['milliseconds']:.1f}", f"{row['times_faster']:.2f}")
            cells = (*times, f"{row['calls']}", f"{row['peak_mib']:.1f}", share, f"{row['error']:.5f}")
            table.add_row(name, *cells)
        return table
