"""Runs programs in processes forked from one that has torch and the hosts loaded, where a process is the point.

`Warm` is the side of the tests. Run as a program, the file is the other side: a request is a line of JSON on standard
input, the answer is the status of the process that was forked for it. It has one thread whenever it forks.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

MODULES = (
    "torch",
    "transformers.modeling_utils",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.schedulers",
    "noiseworks.core.cli",
)


class Warm:
    """Starts programs: installed commands by their name, or `python FILE`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, words: Sequence[object], cwd: Path, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess:
        """Run a program to its end and return it with its text."""
        out, error = self._folder / "out.txt", self._folder / "error.txt"
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "environment": {**os.environ, **variables},
            "out": str(out),
            "error": str(error),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(request["words"], code, out.read_text(), error.read_text())

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Load the modules, then fork one process a request."""
    for name in MODULES:
        import_module(name)
    answers = os.dup(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            work(json.loads(line))
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


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
    serve()
