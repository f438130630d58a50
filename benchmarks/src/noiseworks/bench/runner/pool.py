"""Runs many tasks: on threads of this process that each watch one worker, or on a Ray cluster."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Protocol

from noiseworks.bench.runner.processes import ColdWorker, Server, hosts_of
from noiseworks.bench.runner.tasks import Outcome, Task, run_task, worker_environment


class Watcher(Protocol):
    """What is told about running tasks; called from several threads."""

    def started(self, task: Task) -> None:
        """A task begins."""

    def progressed(self, task: Task, done: int, total: int, text: str) -> None:
        """A running task reports how far it is."""


def run_local(
    tasks: Sequence[Task], out: Path, jobs: int, watcher: Watcher, *, cold: bool = False
) -> Iterator[Outcome]:
    """Run tasks in at most `jobs` processes at a time and yield outcomes as they end.

    When the consumer stops early (Ctrl-C), the running workers are ended before this returns.

    Args:
        tasks: What to run.
        out: The output folder.
        jobs: Processes at a time.
        watcher: Told what happens.
        cold: Whether each task starts in an interpreter of its own, instead of being forked where that is safe
            and pays.
    """
    stop = Event()
    modules = [] if cold else modules_to_load(tasks)
    server = Server(modules, worker_environment(tasks[0]), jobs, stop) if modules else nullcontext(ColdWorker)

    def run(task: Task) -> Outcome:
        watcher.started(task)
        return run_task(task, out, lambda *news: watcher.progressed(task, *news), stop, start)

    with server as start, ThreadPoolExecutor(jobs) as executor:
        pending = {executor.submit(run, task) for task in tasks}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            stop.set()
            for future in pending:
                future.cancel()


def modules_to_load(tasks: Sequence[Task]) -> list[str]:
    """Return what a server of forks loads for these tasks; nothing where forking is unsafe or does not pay."""
    # A fork must not inherit an accelerator in use, and macOS's own libraries do not survive one.
    if len(tasks) < 2 or sys.platform != "linux" or any(task.device != "cpu" for task in tasks):
        return []
    return hosts_of(sorted({name for task in tasks for name in task.source.distributions}))
