"""One task is one seed of one claim: its identity, its folder, and how it runs in a process of its own."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.processes import ColdWorker, Starter, watch
from noiseworks.core.artifacts import atomic_write

RESULT_NAME = "result.json"
LOG_NAME = "log.txt"
JOB_NAME = "job.json"
PROGRESS_NAME = "progress.json"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Task:
    """One (claim, seed).

    Attributes:
        source: Where the claim is imported from.
        claim_version: `Claim.version`.
        scale: Name of the scale.
        settings: The scale's settings.
        seed: The judging seed.
        model: The model the user named, or None.
        device: "cpu", "cuda", ...
        time_limit: Seconds.
        threads: CPU threads of the process; not part of the identity.
        data: Name -> path or model that the user gave for the claim.
    """

    source: Source
    claim_version: int
    scale: str
    settings: Mapping[str, Any]
    seed: int
    model: str | None
    device: str
    time_limit: float
    threads: int = 1
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.source.method} seed {self.seed}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides whether a finished result can be used again."""
        return {
            "method": self.source.method,
            "claim_version": self.claim_version,
            "package_version": self.source.package_version,
            "scale": self.scale,
            "settings": dict(self.settings),
            "seed": self.seed,
            "model": self.model,
            "device": self.device,
            **({"data": dict(self.data)} if self.data else {}),
        }

    def folder(self, out: Path) -> Path:
        """Return the task's folder below the output folder; its name ends in a digest of the fingerprint."""
        text = json.dumps(self.fingerprint(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return out / "tasks" / self.source.method / f"{self.scale}-{self.seed}-{digest}"


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: The task.
        folder: Its folder.
        result: What the worker wrote, or None when it failed.
        error: One line that says why it failed, or None.
        seconds: Wall-clock time of the process.
        reused: Whether the result was there from an earlier run.
    """

    task: Task
    folder: Path
    result: dict[str, Any] | None
    error: str | None
    seconds: float
    reused: bool = False


def finished(task: Task, out: Path) -> Outcome | None:
    """Return the outcome of a task that an earlier run finished, or None."""
    folder = task.folder(out)
    result = read_result(folder, task.fingerprint())
    return None if result is None else Outcome(task, folder, result, None, result["seconds"], reused=True)


def read_result(folder: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result in a task's folder when it is whole and has this fingerprint."""
    try:
        result = json.loads((folder / RESULT_NAME).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return result if result.get("fingerprint") == json.loads(json.dumps(fingerprint)) else None


def run_task(task: Task, out: Path, progress: Progress, stop: Event, start: Starter = ColdWorker) -> Outcome:
    """Run a task in its own process and wait for it; a failure is an outcome, not an exception.

    Args:
        task: What to run.
        out: The output folder.
        progress: Called with (done, total, text) whenever the worker reports.
        stop: Ends the worker when it is set.
        start: Starts the worker.
    """
    folder = task.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "values": task.source.values,
        "method": task.source.method,
        "scale": task.scale,
        "settings": dict(task.settings),
        "seed": task.seed,
        "model": task.model,
        "device": task.device,
        "data": dict(task.data),
        "folder": str(folder.resolve()),
        "fingerprint": task.fingerprint(),
    }
    atomic_write(folder / JOB_NAME, json.dumps(job))
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
    report = _progress_reader(folder / PROGRESS_NAME, progress)
    log = folder / LOG_NAME
    worker = start(["run", str(folder / JOB_NAME)], log, worker_environment(task))
    begin = time.perf_counter()
    error = watch(worker, log, task.time_limit, stop, report)
    seconds = time.perf_counter() - begin
    result = None if error else read_result(folder, task.fingerprint())
    if result is None and error is None:
        error = "the worker ended without a result"
    return Outcome(task, folder, result, error, seconds)


def worker_environment(task: Task) -> dict[str, str]:
    """Return the environment of a worker: its share of the CPU; no downloads unless a hub id was named."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    threads = environment.get("OMP_NUM_THREADS", str(task.threads))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment.setdefault(name, threads)
    named = [name for name in (task.model, *task.data.values()) if name is not None]
    if all(name.startswith("testbed:") or Path(name).exists() for name in named):
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def _progress_reader(path: Path, progress: Progress) -> Callable[[], None]:
    """Return a function that forwards what the worker last wrote about its progress, once for each change."""
    seen: list[str] = [""]

    def poll() -> None:
        try:
            text = path.read_text()
        except FileNotFoundError:
            return
        if text and text != seen[0]:
            seen[0] = text
            progress(*json.loads(text))

    return poll
