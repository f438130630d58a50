"""Runs many tasks: on threads of this process that each watch one worker, or on a Ray cluster."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Protocol

from noiseworks.bench.runner.tasks import Outcome, Task, run_task


class Watcher(Protocol):
    """What is told about running tasks; called from several threads."""

    def started(self, task: Task) -> None:
        """A task begins."""

    def progressed(self, task: Task, done: int, total: int, text: str) -> None:
        """A running task reports how far it is."""


def run_local(tasks: Sequence[Task], out: Path, jobs: int, watcher: Watcher) -> Iterator[Outcome]:
    """Run tasks in at most `jobs` processes at a time and yield outcomes as they end.

    When the consumer stops early (Ctrl-C), the running workers are ended before this returns.
    """
    stop = Event()

    def run(task: Task) -> Outcome:
        watcher.started(task)
        return run_task(task, out, lambda *news: watcher.progressed(task, *news), stop)

    with ThreadPoolExecutor(jobs) as executor:
        pending = {executor.submit(run, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            stop.set()
            for future in pending:
                future.cancel()
