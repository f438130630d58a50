"""The one progress bar of a run, on stderr: step, time left and the figures of the last step."""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """A bar from the step that a run goes on from to its last one; nothing where stderr is no terminal.

    Args:
        title: What is under way.
        total: Steps of the whole run, None where nobody knows.
        start: Steps that are done.
        shown: Whether to show it at all.
    """

    def __init__(self, title: str, total: int | None, start: int = 0, *, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bars.add_task(title, total=total, completed=start, figures="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Show that `step` steps are done, with a few figures; without any the last ones stay."""
        if figures:
            shown = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in figures.items())
            self._bars.update(self._task, completed=step, figures=shown)
        else:
            self._bars.update(self._task, completed=step)

    def done(self, step: int, total: int) -> None:
        """Show that `step` of `total` are done: for what takes a function of the two."""
        self._bars.update(self._task, completed=step, total=total)

    def say(self, sentence: str) -> None:
        """Print a line on stderr, above the bar."""
        if self._bars.disable:
            sys.stderr.write(f"{sentence}\n")
            sys.stderr.flush()
        else:
            self._bars.console.print(sentence, markup=False, highlight=False)
