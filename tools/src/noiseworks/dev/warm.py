"""Runs programs in processes forked from one that has torch and the hosts loaded, where a process is the point.

`Warm` is the side of the tests. Run as a program, the file is the other side: a request is a line of JSON on standard
input, the programs that it names run beside each other, and the answer is their exit codes and the CPU seconds that
all of it took since the start. The other side has one thread whenever it forks, loads nothing of the workspace, and
needs nothing but Python: any environment can run it.
"""

import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    "torch",
    "transformers.modeling_utils",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.schedulers",
    "lightning",
    "peft",
    "cyclopts",
    "rich.progress",
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}


class Warm:
    """Starts programs: installed commands by their name, or `python FILE`, in an environment that has them.

    Attributes:
        seconds: CPU seconds of the process that forks and of what it ran, until that process is closed and counts
            as a child of this one.
    """

    def __init__(
        self, folder: Path, python: Path | str = sys.executable, modules: Iterable[str] = MODULES
    ) -> None:
        """Start the process that forks.

        Args:
            folder: Where the programs' output goes, in files.
            python: The environment's interpreter.
            modules: What it loads before it forks; names that the environment lacks are passed over.
        """
        self._folder = folder
        self.seconds = 0.0
        self._process = subprocess.Popen(
            [str(python), "-P", __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
        """Run a program to its end, as a user without a network would, and return it with its text."""
        (done,) = self._run(words, cwd, [variables])
        return done

    def ranks(self, *words: object, cwd: Path, count: int = 2) -> list[subprocess.CompletedProcess]:
        """Run a program `count` times at once, as a launcher such as torchrun would for a training on a CPU."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        each = [{**common, "RANK": str(i), "LOCAL_RANK": str(i), "NODE_RANK": "0"} for i in range(count)]
        return self._run(words, cwd, [{**one, "OMP_NUM_THREADS": "1"} for one in each])

    def _run(
        self, words: Sequence[object], cwd: Path, each: Sequence[Mapping[str, str]]
    ) -> list[subprocess.CompletedProcess]:
        requests = [
            {
                "words": [str(word) for word in words],
                "cwd": str(cwd),
                "environment": {**os.environ, **OFFLINE, **variables},
                "out": str(self._folder / f"out-{index}.txt"),
                "error": str(self._folder / f"error-{index}.txt"),
            }
            for index, variables in enumerate(each)
        ]
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        codes, self.seconds = json.loads(self._process.stdout.readline())
        return [
            subprocess.CompletedProcess(
                request["words"], code, Path(request["out"]).read_text(), Path(request["error"]).read_text()
            )
            for request, code in zip(requests, codes, strict=True)
        ]

    def close(self) -> None:
        """End the process, and what it still runs."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.seconds = 0.0


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def serve(modules: Iterable[str]) -> None:
    """Load the modules, then fork one process a program."""
    for name in modules:
        if find_spec(name.partition(".")[0]):
            import_module(name)
    answers = os.dup(1)
    for line in sys.stdin:
        children = []
        for request in json.loads(line):
            child = os.fork()
            if child == 0:
                work(request)
            children.append(child)
        codes = {}
        while len(codes) < len(children):
            ended, status = os.wait()
            codes[ended] = os.waitstatus_to_exitcode(status)
            if codes[ended]:  # the others would wait for it
                for child in set(children) - set(codes):
                    os.kill(child, signal.SIGKILL)
        answer = [[codes[child] for child in children], cpu_seconds()]
        os.write(answers, f"{json.dumps(answer)}\n".encode())


def work(request: dict) -> None:
    """Be the program, and leave with its status."""
    code = 1
    try:
        for path, target in ((os.devnull, 0), (request["out"], 1), (request["error"], 2)):
            flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o644), target)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        program, *rest = request["words"]
        if program == "python":
            sys.argv = rest
            sys.path.insert(0, str(Path(rest[0]).parent))
            runpy.run_path(rest[0], run_name="__main__")
        else:
            sys.argv = [program, *rest]
            (entry,) = entry_points(group="console_scripts", name=program)
            entry.load()()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:  # the trace is what the program would print
        traceback.print_exc()
    finally:
        with suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
