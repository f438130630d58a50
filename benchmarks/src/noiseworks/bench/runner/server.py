"""A process that has the hosts loaded and forks one worker a task.

Importing torch and its hosts costs more than many tasks do. Run as
`python -m noiseworks.bench.runner.server MODULE...`: requests are lines of JSON on standard input, answers lines on
standard output, `ready` once the modules are loaded, then the status of each worker that ended. The process has one
thread and no accelerator in use whenever it forks, and ends, with every worker, when its input closes.
"""

import gc
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from noiseworks.bench.runner import worker


class ForkServer:
    """Forks workers on request until its input closes."""

    def __init__(self) -> None:
        self._answers = os.dup(1)
        os.dup2(2, 1)  # what a module prints while it is loaded is no answer
        # Workers watch the reading end: the other one closes with this process, however it ends.
        self._lifeline, self._held = os.pipe()
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *news: None)
        self._running: dict[int, int] = {}

    def serve(self, modules: Sequence[str]) -> None:
        """Load modules, then obey."""
        for name in modules:
            # A module that cannot be loaded here cannot be loaded by a task either, whose log then says why.
            with suppress(Exception):
                import_module(name)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            return  # its forks could not use the accelerator; workers then start cold
        gc.freeze()  # what is loaded stays shared between the workers
        self._answer({"ready": True})
        received = b""
        with selectors.DefaultSelector() as events:
            events.register(0, selectors.EVENT_READ)
            events.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in events.select()}
                if self._woken in ready:
                    os.read(self._woken, 4096)
                    self._report_ended()
                if 0 in ready:
                    news = os.read(0, 65536)
                    if not news:
                        break
                    *lines, received = (received + news).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
        for pid in self._running:
            end_group(pid)

    def _obey(self, request: dict[str, Any]) -> None:
        if "end" in request:
            for pid, number in self._running.items():
                if number == request["end"]:
                    end_group(pid)
            return
        pid = os.fork()
        if pid == 0:
            self._work(request)
        with suppress(PermissionError, ProcessLookupError):  # the worker does it too: whoever comes first
            os.setpgid(pid, pid)
        self._running[pid] = request["number"]

    def _report_ended(self) -> None:
        """Answer the status of every worker that ended, after ending the children that it left behind."""
        while self._running:
            # Not yet reaped, so that its number cannot belong to another process when its group is ended.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            end_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            number = self._running.pop(ended.si_pid)
            self._answer({"number": number, "code": os.waitstatus_to_exitcode(status)})

    def _answer(self, record: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # nobody waits for it any more; the closed input ends this process
            os.write(self._answers, (json.dumps(record) + "\n").encode())

    def _work(self, request: dict[str, Any]) -> None:
        """Be a worker: run the job with its output in the log, and leave."""
        code = 1
        try:
            with suppress(PermissionError):
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            os.close(self._held)
            os.close(self._answers)
            worker.end_with(self._lifeline)
            torch = sys.modules.get("torch")
            if torch is not None:
                torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            mode, job = request["arguments"]
            worker.MODES[mode](json.loads(Path(job).read_text()))
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:  # the last line of the trace is what the run reports
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def end_group(pid: int) -> None:
    """Kill a worker and its children."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    ForkServer().serve(sys.argv[1:])
