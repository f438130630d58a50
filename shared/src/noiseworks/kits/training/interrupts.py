"""Ctrl-C and termination: a run stops after the step at hand, with a checkpoint, and says how to go on."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Stopped(KeyboardInterrupt):
    """A run was stopped and can go on; the message says at which step and how. The command line exits with 130."""


class Aborted(BaseException):
    """A second signal: stop now, without a checkpoint."""


class Interrupts:
    """Catches SIGINT and SIGTERM within a block: the first is noted, a second raises `Aborted`.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """

    def __init__(self) -> None:
        self.caught = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            raise Aborted
        self.caught = True


def stopped_at(step: int | None) -> Stopped:
    """Return what to raise when a run stops.

    Args:
        step: Of the checkpoint that the run goes on from; None without one.
    """
    if step is None:
        return Stopped("stopped before the first checkpoint; run the same command again to begin anew")
    return Stopped(f"stopped at step {step}; run the same command again to go on")
