"""How workers are started and ended: each in a new interpreter, or forked from a server that has the hosts loaded."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Lock, Semaphore, Thread
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from packaging.requirements import Requirement

POLL_SECONDS = 0.05
# Distribution -> modules that are worth loading once for all tasks of methods that require it.
HOSTS = {
    "torch": ("torch",),
    "transformers": ("transformers", "transformers.modeling_utils"),
    "diffusers": (
        "diffusers",
        "diffusers.models",
        "diffusers.schedulers",
        "diffusers.pipelines.pipeline_utils",
    ),
    "lightning": ("lightning",),
    "torchmetrics": ("torchmetrics",),
    "peft": ("peft",),
}


class Worker(Protocol):
    """A running worker process."""

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal, or None while it runs."""

    def end(self) -> int:
        """Kill it and every process of its group that is left, and return its exit status."""


class Starter(Protocol):
    """Starts workers."""

    def __call__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
        """Start `worker.py` with these arguments and its output in a log file."""


class ColdWorker:
    """A worker in an interpreter of its own.

    Its standard input is a pipe that it watches: when this process dies, even by `kill -9`, the pipe closes and the
    worker ends itself.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]):
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "noiseworks.bench.runner.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._process.poll()

    def end(self) -> int:
        """Kill the process group and return the exit status."""
        with suppress(
            ProcessLookupError
        ):  # after a normal end, this ends children that the claim left behind
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process.stdin.close()
        return code


class ForkedWorker:
    """A worker that a server forked."""

    def __init__(self, server: "Server", number: int):
        self._server, self._number = server, number
        self._code: int | None = None
        self.news: queue.SimpleQueue[int] = queue.SimpleQueue()

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        if self._code is None:
            with suppress(queue.Empty):
                self._code = self.news.get_nowait()
        return self._code

    def end(self) -> int:
        """Kill the process group, unless the server did when the worker ended, and return the exit status."""
        if self.poll() is None:
            self._server.send({"end": self._number})
            self._code = self.news.get()
        return self._code


class Server:
    """Starts workers by forking them from one process that has loaded the hosts, and in new interpreters until then.

    Loading takes one core for some seconds. Meanwhile all tasks that run at a time but one start cold.

    Args:
        modules: What the process loads.
        environment: Its environment, and that of its workers; a worker of another environment starts cold.
        jobs: Tasks at a time.
        stop: Ends the waiting for the process.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], jobs: int, stop: Event):
        self._environment, self._stop = dict(environment), stop
        # Imports may ask whether there is a GPU; this way of asking leaves the process able to fork.
        own = self._environment | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "noiseworks.bench.runner.server", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=own,
            start_new_session=True,
        )
        self._lock, self._loaded, self._ended = Lock(), Event(), False
        self._running: dict[int, ForkedWorker] = {}
        self._count = 0
        self._cold = Semaphore(jobs - 1)
        Thread(target=self._listen, name="fork-server", daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # it may still be loading; its workers, if any, end with it
        self._process.wait()
        self._process.stdin.close()

    def __call__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Worker:
        """Start a worker: forked, or cold when the server is not there yet and others wait for it already."""
        if dict(environment) != self._environment:
            return ColdWorker(arguments, log, environment)
        if not self._loaded.is_set() and self._cold.acquire(blocking=False):
            return ColdWorker(arguments, log, environment)
        while not (self._loaded.wait(POLL_SECONDS) or self._stop.is_set()):
            pass
        with self._lock:
            if self._loaded.is_set() and not self._ended:
                self._count += 1
                worker = self._running[self._count] = ForkedWorker(self, self._count)
                request = {"number": self._count, "arguments": list(arguments), "log": str(log)}
                with suppress(BrokenPipeError):  # `_listen` then reports the end
                    self._write(request)
                return worker
        return ColdWorker(arguments, log, environment)

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request to the process."""
        with self._lock, suppress(BrokenPipeError):
            self._write(request)

    def _write(self, request: Mapping[str, Any]) -> None:
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()

    def _listen(self) -> None:
        for line in self._process.stdout:
            record = json.loads(line)
            if record.get("ready"):
                self._loaded.set()
            else:
                with self._lock:
                    self._running.pop(record["number"]).news.put(record["code"])
        with self._lock:
            self._ended = True
            for worker in self._running.values():
                worker.news.put(-signal.SIGKILL)
            self._running.clear()
        self._loaded.set()


def watch(
    worker: Worker,
    log: Path,
    time_limit: float,
    stop: Event,
    poll: Callable[[], None] | None = None,
) -> str | None:
    """Wait for a worker; return None, or one line that says why it failed.

    Args:
        worker: The worker.
        log: Its log.
        time_limit: Seconds after which it is ended, with its children.
        stop: Ends it when set.
        poll: Called while waiting.
    """
    deadline = time.monotonic() + time_limit
    stopped = None
    while worker.poll() is None and stopped is None:
        if stop.wait(POLL_SECONDS):
            stopped = "stopped"
        elif time.monotonic() > deadline:
            stopped = f"stopped at its time limit of {time_limit:g} s"
        elif poll:
            poll()
    code = worker.end()
    return stopped or (failure_line(code, log) if code else None)


def failure_line(code: int, log: Path) -> str:
    """Return why a worker ended with this status: its signal, or the last line of its log."""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}" + (" (out of memory?)" if code == -9 else "")
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else f"ended with status {code} and an empty log"


def hosts_of(distributions: Sequence[str]) -> list[str]:
    """Return the modules worth loading once for methods: of the installed hosts that their distributions require."""
    required: set[str] = set()
    left = [(name, "bench") for name in distributions]
    while left:
        name, extra = left.pop()
        for requirement in _requirements(name, extra):
            if requirement.name in HOSTS:
                required.add(requirement.name)
            elif requirement.name.startswith("noiseworks-") and requirement.name != "noiseworks-bench":
                left += [(requirement.name, extra) for extra in (*requirement.extras, "")]
    return [
        module
        for host, modules in HOSTS.items()
        if host in required and find_spec(host)
        for module in modules
    ]


def _requirements(name: str, extra: str) -> "list[Requirement]":
    from packaging.requirements import Requirement

    try:
        found = [Requirement(text) for text in distribution(name).requires or ()]
    except PackageNotFoundError:
        return []
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]
