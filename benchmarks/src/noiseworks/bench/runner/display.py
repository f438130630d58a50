"""What the terminal shows while tasks run, and how numbers and verdicts are written everywhere."""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from noiseworks.bench.runner.tasks import Outcome, Task
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

VERDICT_STYLE = {
    "holds": "green",
    "partly": "yellow",
    "no effect": "dim",
    "worse": "red",
    "void": "magenta",
    "tuning": "cyan",
    "failed": "bold red",
    "skipped": "dim",
}


class Display:
    """Progress on stderr: live bars on a terminal, one line a finished task elsewhere."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[text]}"),
        )
        self._bars = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self._lock = Lock()
        self._rows: dict[str, Any] = {}
        self._total = self._bars.add_task("looking for claims", total=None, text="")
        self._done, self._count = 0, 0

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Write one line."""
        self.console.print(Text(text), soft_wrap=True)

    def expect(self, count: int) -> None:
        """Learn how many tasks there are."""
        self._count = count
        self._bars.update(self._total, description="tasks", total=count, completed=0)

    def started(self, task: Task) -> None:
        """Show a running task."""
        with self._lock:
            self._rows[task.name] = self._bars.add_task(f"  {task.name}", total=1000, text="starting")

    def progressed(self, task: Task, done: int, total: int, text: str) -> None:
        """Move a running task's bar."""
        with self._lock:
            if task.name in self._rows:
                self._bars.update(self._rows[task.name], completed=done, total=total, text=text)

    def ended(self, outcome: Outcome) -> None:
        """Show how a task ended."""
        with self._lock:
            row = self._rows.pop(outcome.task.name, None)
            if row is not None:
                self._bars.remove_task(row)
            self._done += 1
            self._bars.update(self._total, completed=self._done)
        how = "reused" if outcome.reused else f"{outcome.seconds:.1f} s"
        end = f"failed: {outcome.error}" if outcome.error else how
        self.say(f"[{self._done}/{self._count}] {outcome.task.name}: {end}")


def number(value: float) -> str:
    """Return a number with four significant digits, without trailing zeros."""
    return f"{value:.4g}"


def effect(value: float, kind: str) -> str:
    """Return a ratio as `×0.75` and a difference with its sign."""
    if kind == "ratio":
        return f"×{number(value)}"
    return f"{value:+.4g}" if value else "0"


def threshold_text(target: Mapping[str, Any]) -> str:
    """Return what a target promises, for example `≤ ×0.75`."""
    return ("≥ " if target["better"] == "higher" else "≤ ") + effect(target["threshold"], target["kind"])


def estimate_text(target: Mapping[str, Any]) -> str:
    """Return an estimate with its interval, or an empty text when the target was not judged."""
    if "estimate" not in target:
        return ""
    low, high = (effect(end, target["kind"]) for end in target["interval"])
    if target["observations"] == 1:
        return f"{effect(target['estimate'], target['kind'])} (one observation)"
    return f"{effect(target['estimate'], target['kind'])} [{low}, {high}]"


def rivals_text(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return the labels of the arms that a target's arm is compared with."""
    against = target["against"]
    if isinstance(against, str):
        return labels[against]
    return "the best of " + ", ".join(labels[name] for name in against)


def outcome_word(claim: Mapping[str, Any]) -> str:
    """Return a claim's verdict, or its status when it has none."""
    return claim["verdict"] or claim["status"]


def results_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of all claims for the terminal: a row a target."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for title in ("method", "target", "paper", "ours [95 %]", "verdict"):
        table.add_column(title, overflow="fold")
    for claim in claims:
        word = outcome_word(claim)
        verdict = Text(word, style=VERDICT_STYLE[word])
        if claim["status"] != "judged":
            reason = claim["failures"][0]["error"] if claim["failures"] else "; ".join(claim["notes"])
            log = f" (log: {claim['failures'][0]['log']})" if claim["failures"] else ""
            table.add_row(claim["method"], Text(f"{reason}{log}"), "", "", verdict)
            continue
        for index, target in enumerate(claim["targets"]):
            name = ("guard: " if target["guard"] else "") + target["name"]
            own = verdict if index == 0 else Text(target["verdict"], style="dim")
            method = claim["method"] if index == 0 else ""
            table.add_row(method, Text(name), threshold_text(target), estimate_text(target), own)
        if claim["void_reason"]:
            table.add_row("", Text(claim["void_reason"], style="dim"), "", "", "")
    return table
