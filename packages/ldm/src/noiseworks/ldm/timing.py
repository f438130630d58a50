"""Scores along training time: what the claim of equal compute is measured with."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
from torch import Tensor


class TimedScores(L.Callback):
    """Score the averaged model when the training time reaches each mark, and stop at the last one.

    Time is the process's CPU time (on a GPU: wall-clock time), so that other work on the machine does not
    count; scoring is left out.

    Args:
        marks: Seconds, rising.
        score: Called at each mark, returns the scores and the samples.
        used: Seconds that preparing the training data took, which count.
    """

    def __init__(
        self,
        marks: Sequence[float],
        score: Callable[[], tuple[np.ndarray, Tensor]],
        used: float = 0.0,
    ) -> None:
        self.marks, self.score = list(marks), score
        self.clock: Callable[[], float] = time.process_time
        self.elapsed, self.last, self.steps = used, 0.0, 0
        self.seconds: list[float] = []
        self.scores: list[float] = []
        self.final: np.ndarray | None = None
        self.images: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        if pl_module.device.type != "cpu":
            self.clock = time.perf_counter
        self.last = self.clock()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop the clock, score if a mark is reached, go on."""
        self.elapsed += self.clock() - self.last
        self.steps += 1
        if self.elapsed >= self.marks[len(self.seconds)]:
            self.final, self.images = self.score()
            self.seconds.append(self.elapsed)
            self.scores.append(float(self.final.mean()))
            trainer.should_stop = len(self.seconds) == len(self.marks)
        self.last = self.clock()


def seconds_to_reach(
    score: float, seconds: Sequence[float], scores: Sequence[float], start: float = 0.0
) -> float:
    """Return when a curve reaches a score, linear from (start, 0) through its points; its last time if never."""
    before_time, before = start, 0.0
    for moment, value in zip(seconds, scores, strict=True):
        if value >= score:
            share = (score - before) / (value - before) if value > before else 1.0
            return before_time + max(share, 0.0) * (moment - before_time)
        before_time, before = moment, value
    return seconds[-1]
