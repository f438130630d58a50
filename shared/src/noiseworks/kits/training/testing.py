"""The check that every trainer owes: a run that was stopped goes on to the numbers of one that was not."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from noiseworks.kits.training.folder import METRICS_NAME
from noiseworks.kits.training.interrupts import Stopped
from noiseworks.kits.training.progress import Bar
from torch import Tensor, equal


class Killed(BaseException):
    """Stands for a process that ends without a word."""


@contextmanager
def stopping(step: int | None, *, kill: bool = False) -> Iterator[None]:
    """Stop the training in the block after a step, as Ctrl-C does, and go on behind the block.

    Args:
        step: Steps done; None lets the training end by itself.
        kill: Whether it dies before the checkpoint of that step instead.

    Raises:
        AssertionError: When the training ends before it.
    """
    if step is None:
        yield
        return
    update = Bar.update

    def update_or_stop(bar: Bar, done: int, figures: Mapping[str, float]) -> None:
        update(bar, done, figures)
        if done == step:
            if kill:
                raise Killed
            signal.raise_signal(signal.SIGINT)

    with patch.object(Bar, "update", update_or_stop):
        try:
            yield
        except (Killed, Stopped):
            return
    raise AssertionError(f"the training ended before step {step}")


def check_resume(train: Callable[[Path], Mapping[str, Tensor]], folder: Path, *, stop_at: int) -> None:
    """Train as a whole, with a Ctrl-C after step `stop_at` and with a kill in it; all must end bit-equal.

    Args:
        train: Makes new objects, trains them in a folder to the end, with a checkpoint after every step
            (`checkpoint_every=0`), and returns the tensors to compare.
        folder: Where the three runs go.
        stop_at: The step, from 2 to one below the last.

    Raises:
        AssertionError: Naming what differs.
    """
    whole = train(folder / "whole")
    for name in ("stopped", "killed"):
        with stopping(stop_at, kill=name == "killed"):
            train(folder / name)
        again = train(folder / name)
        assert whole.keys() == again.keys(), f"{name}: other tensors"
        for key, tensor in whole.items():
            assert equal(tensor, again[key]), f"{name}: {key} differs"
        texts = [(folder / part / METRICS_NAME).read_text() for part in ("whole", name)]
        assert texts[0] == texts[1], f"{name}: {METRICS_NAME} differs"
