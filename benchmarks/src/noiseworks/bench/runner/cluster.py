"""Runs the same tasks on a Ray cluster: a node starts the same worker process and ships back its folder."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from noiseworks.bench.runner.pool import Watcher
from noiseworks.bench.runner.tasks import RESULT_NAME, Outcome, Task, run_task
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError

LOCAL = "local"


@dataclass(frozen=True)
class Shipped:
    """What a node sends back: the outcome's fields, and every file of the task's folder by relative name."""

    result: dict[str, Any] | None
    error: str | None
    seconds: float
    files: dict[str, bytes]


def check_installed() -> None:
    """Refuse when Ray is missing.

    Raises:
        InputError: Naming the extra to install.
    """
    if find_spec("ray") is None:
        raise InputError("--ray needs Ray, which is not installed; install noiseworks-bench[ray]")


def run_on_node(task: Task) -> Shipped:
    """Run a task in a temporary folder of this node; the node needs the same packages installed."""
    with tempfile.TemporaryDirectory() as name:
        outcome = run_task(task, Path(name), lambda *news: None, Event())
        files = {
            str(path.relative_to(outcome.folder)): path.read_bytes()
            for path in sorted(outcome.folder.rglob("*"))
            if path.is_file()
        }
    return Shipped(outcome.result, outcome.error, outcome.seconds, files)


def unpack(task: Task, shipped: Shipped, out: Path) -> Outcome:
    """Write what a node sent into the task's folder, the result last, since it marks the task as finished."""
    folder = task.folder(out)
    for name in sorted(shipped.files, key=lambda name: name == RESULT_NAME):
        atomic_write(folder / name, shipped.files[name])
    return Outcome(task, folder, shipped.result, shipped.error, shipped.seconds)


def run_on_ray(tasks: Sequence[Task], out: Path, address: str, watcher: Watcher) -> Iterator[Outcome]:
    """Run tasks on Ray and yield outcomes as they end; a task takes its threads as CPUs, and a GPU on CUDA.

    Args:
        tasks: What to run.
        out: The output folder on this machine.
        address: Address of the cluster, or `local` to start Ray on this machine.
        watcher: Told when a task is handed to Ray.

    Raises:
        InputError: When no cluster answers at the address.
    """
    # Ray would otherwise rebuild the environment of `uv run` on every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    try:
        ray.init(
            address=LOCAL if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {address!r} ({error}); use --ray local") from error
    try:
        yield from _collect(ray, tasks, out, watcher)
    finally:
        ray.shutdown()


def _collect(ray: Any, tasks: Sequence[Task], out: Path, watcher: Watcher) -> Iterator[Outcome]:
    resources = ray.cluster_resources()
    running: dict[Any, Task] = {}
    waiting = list(tasks)
    while waiting or running:
        slots = max(1, int(resources.get("CPU", 1)) // tasks[0].threads)
        while waiting and len(running) < slots:
            task = waiting.pop(0)
            options = {
                "num_cpus": min(task.threads, resources.get("CPU", 1)),
                "num_gpus": 1 if task.device.startswith("cuda") else 0,
            }
            watcher.started(task)
            running[ray.remote(run_on_node).options(**options).remote(task)] = task
        done, _ = ray.wait(list(running))
        for reference in done:
            task = running.pop(reference)
            try:
                yield unpack(task, ray.get(reference), out)
            except ray.exceptions.RayError as error:
                line = str(error).strip().splitlines()[-1]
                yield Outcome(task, task.folder(out), None, f"the Ray task was lost: {line}", 0.0)
