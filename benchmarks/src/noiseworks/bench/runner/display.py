"""What the terminal shows while tasks run, and how numbers and verdicts are written everywhere."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from threading import Lock
from typing import Any

from noiseworks.bench.claims import Target
from noiseworks.bench.runner.tasks import Outcome, Task
from noiseworks.bench.runner.verdicts import deciding_target, no_effect_value
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
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
        # What is said of a task is cut where a narrow terminal ends; names, bars and times are not.
        cut = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[text]}", table_column=cut),
        )
        self._bars = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal, expand=True
        )
        self._lock = Lock()
        self._rows: dict[str, Any] = {}
        self._shares: dict[str, float] = {}
        self._total = self._bars.add_task("looking for claims", total=None, text="")
        self._done, self._reused, self._count = 0, 0, 0
        self._begin = time.monotonic()

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
        self._count, self._begin = count, time.monotonic()
        self._bars.update(self._total, description="all tasks", total=count, completed=0)

    def started(self, task: Task) -> None:
        """Show a running task."""
        with self._lock:
            self._rows[task.name] = self._bars.add_task(f"  {task.name}", total=1000, text="starting")

    def progressed(self, task: Task, done: int, total: int, text: str) -> None:
        """Move a running task's bar."""
        with self._lock:
            if task.name in self._rows:
                self._bars.update(self._rows[task.name], completed=done, total=total, text=text)
                self._shares[task.name] = done / max(total, 1)
                self._tell_total()

    def ended(self, outcome: Outcome) -> None:
        """Show how a task ended."""
        with self._lock:
            row = self._rows.pop(outcome.task.name, None)
            self._shares.pop(outcome.task.name, None)
            if row is not None:
                self._bars.remove_task(row)
            self._done += 1
            self._reused += outcome.reused
            self._tell_total()
        how = "reused" if outcome.reused else f"{outcome.seconds:.1f} s"
        end = f"failed: {outcome.error}" if outcome.error else how
        self.say(f"[{self._done}/{self._count}] {outcome.task.name}: {end}")

    def _tell_total(self) -> None:
        share = self._done + sum(self._shares.values())
        left = time_left(time.monotonic() - self._begin, share - self._reused, self._count - self._reused)
        text = f"{self._done} of {self._count} done" + (f", about {left} left" if left else "")
        self._bars.update(self._total, completed=share, text=text)


def time_left(elapsed: float, done: float, count: float) -> str:
    """Return how long the rest takes at the speed so far, as minutes and seconds, or an empty text when unknown.

    Args:
        elapsed: Seconds so far.
        done: Tasks done, with the shares of the running ones.
        count: All tasks.
    """
    if done < 0.05 or done >= count:
        return ""
    minutes, seconds = divmod(round(elapsed * (count - done) / done), 60)
    return f"{minutes}:{seconds:02d}"


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


def decided_by(claim: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the target that decided a claim's verdict, or None when none did."""
    if claim["status"] != "judged" or claim["verdict"] in ("void", "tuning"):
        return None
    verdicts = [target["verdict"] for target in claim["targets"]]
    return claim["targets"][deciding_target([target_of(target) for target in claim["targets"]], verdicts)]


def target_of(record: Mapping[str, Any]) -> Target:
    """Return the target of an entry of a results file."""
    return Target(**{field.name: record[field.name] for field in fields(Target)})


def passed_text(claim: Mapping[str, Any]) -> str:
    """Return how many targets hold, and which one decided where not all do: `1 of 4; oracle score: worse`."""
    found = decided_by(claim)
    if found is None:
        return claim.get("void_reason") or ""
    count = sum(target["verdict"] == "holds" for target in claim["targets"])
    text = f"{count} of {len(claim['targets'])}"
    return text if found["verdict"] == "holds" else f"{text}; {found['name']}: {found['verdict']}"


def headline(document: Mapping[str, Any]) -> str:
    """Return what a run showed, in the words that its scale allows: only `laptop` and `full` judge."""
    claims = document["claims"]
    judged = [claim for claim in claims if claim["status"] == "judged"]
    if document["scale"] == "smoke":
        return f"{len(judged)} of {len(claims)} claims ran"
    if document["scale"] == "tune":
        return f"{len(judged)} of {len(claims)} claims ran on tuning seeds; nothing is judged"
    if document["scale"] == "quick":
        effects = [claim["targets"][0] for claim in judged]
        along = sum(_beyond(target, no_effect_value(target_of(target))) for target in effects)
        sized = sum(_beyond(target, target["threshold"], equal=True) for target in effects)
        return f"{along} of {len(effects)} effects in the promised direction, {sized} at the promised size"
    return f"{len(claims)} claim{'s' * (len(claims) != 1)}: {count_verdicts(claims)}"


def count_verdicts(claims: Sequence[Mapping[str, Any]]) -> str:
    """Return how many claims have each verdict: `3 holds, 2 partly`."""
    counts = Counter(outcome_word(claim) for claim in claims)
    return ", ".join(f"{counts[word]} {word}" for word in VERDICT_STYLE if counts[word])


def _beyond(target: Mapping[str, Any], value: float, *, equal: bool = False) -> bool:
    """Return whether an estimate lies on the better side of a value."""
    gain = target["estimate"] - value
    gain = gain if target["better"] == "higher" else -gain
    return gain > 0 or (equal and gain >= -1e-9 * max(1.0, abs(value)))


def results_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of all claims for the terminal: a row a target."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for title in ("method", "target", "promised", "ours [95 %]", "target is", "claim"):
        table.add_column(title, overflow="fold")
    for claim in claims:
        word = outcome_word(claim)
        verdict = Text(word, style=VERDICT_STYLE[word])
        if claim["status"] != "judged":
            reason = claim["failures"][0]["error"] if claim["failures"] else "; ".join(claim["notes"])
            log = f" (log: {claim['failures'][0]['log']})" if claim["failures"] else ""
            table.add_row(claim["method"], Text(f"{reason}{log}"), "", "", "", verdict)
            continue
        decisive = decided_by(claim)
        for index, target in enumerate(claim["targets"]):
            name = ("guard: " if target["guard"] else "") + target["name"]
            own = Text(target["verdict"], style="bold" if target is decisive else "dim")
            first = (claim["method"], verdict) if index == 0 else ("", Text(""))
            table.add_row(first[0], Text(name), threshold_text(target), estimate_text(target), own, first[1])
        if claim["void_reason"]:
            table.add_row("", Text(claim["void_reason"], style="dim"), "", "", "", "")
    return table
