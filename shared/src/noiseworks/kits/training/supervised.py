"""Supervised training on Lightning's `Trainer`: the run's folder, its checkpoints, figures, bar and end."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: TID253
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint  # noqa: TID253
from noiseworks.core.checks import check_number
from noiseworks.core.devices import resolve_device
from noiseworks.kits.training.batches import Batches
from noiseworks.kits.training.folder import Run
from noiseworks.kits.training.interrupts import Aborted, Interrupts, stopped_at
from noiseworks.kits.training.metrics import MetricsFile
from noiseworks.kits.training.options import Fit
from noiseworks.kits.training.position import Position
from noiseworks.kits.training.progress import Bar
from noiseworks.kits.training.quiet import quiet, refusals
from noiseworks.kits.training.state import (
    kept_sentence,
    load_checkpoint,
    refuse_non_finite,
    replace_checkpoint,
)
from torch.utils.data import DataLoader

VALIDATION = "val/"


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
        steps: Optimiser steps of the whole run.
        resumed_at: The step that this process went on from, or None.
        validation: The figures of the last validation, by the names that were logged.
    """

    steps: int
    resumed_at: int | None
    validation: dict[str, float]


def fit(
    module: L.LightningModule,
    batches: Batches,
    *,
    run: Run | None,
    options: Fit,
    validation: Batches | DataLoader | None = None,
    validate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    clip: float | None = None,
    unused_parameters: bool = False,
    progress: bool = True,
) -> Fitted:
    """Train a Lightning module until `options.max_steps`; a run that was stopped goes on to the same numbers.

    A step is `batches.accumulate` batches, for modules with several optimisers as well, which count their batches
    themselves. What the module logs becomes a column of metrics.csv and a scalar of TensorBoard; names from
    validation begin with `val/`. The checkpoint of a step that ends with a validation holds the validation's figures.

    Args:
        module: The module. What it draws must depend on its own state and the global random state alone.
        batches: Training data; every process gets its part.
        run: The open run, or None to keep nothing.
        options: Length, hardware, bookkeeping.
        validation: Held-out data, by default none: `Batches` with `repeat=True`, or a loader that every process reads
            as a whole.
        validate_every: Steps between two validations, by default an epoch; there is one at the end in any case.
        callbacks: Further callbacks.
        clip: Largest norm of the gradients; only for modules with automatic optimisation.
        unused_parameters: Whether some parameters have no part in some losses (several processes must know).
        progress: Whether to show a bar.

    Returns:
        Steps, and the last validation.

    Raises:
        InputError: When settings do not fit each other or this machine.
        ArtifactError: When the checkpoint cannot be read.
        NonFiniteError: On NaN or infinity in loss, weights or validation; the last checkpoint stays.
        Stopped: On Ctrl-C or termination, after a checkpoint of the step at hand.
    """
    if validate_every is not None:
        check_number("validate_every", validate_every, low=1, integer=True)
    accumulate = batches.accumulate
    every = (validate_every or len(batches) // accumulate) * accumulate
    keeper = _Keeper(run, options, accumulate, None if validation is None else every)
    with refusals():
        trainer = _trainer(
            options,
            _strategy(options, unused_parameters),
            gradient_clip_val=clip,
            accumulate_grad_batches=accumulate if module.automatic_optimization else 1,
            val_check_interval=every,
            callbacks=[*callbacks, Position(), keeper],
        )
    checkpoint = None if run is None else run.checkpoint
    if checkpoint is not None:
        load_checkpoint(checkpoint)  # a file that is cut off is refused in a sentence
    data = _Data(batches, validation)
    with keeper.running(progress), quiet():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return Fitted(keeper.step, keeper.resumed_at, keeper.validation)


def _strategy(options: Fit, unused_parameters: bool) -> str:
    several = options.devices > 1 and options.strategy == "auto"
    strategy = "ddp" if several else options.strategy
    return "ddp_find_unused_parameters_true" if strategy == "ddp" and unused_parameters else strategy


def _trainer(options: Fit, strategy: str, **settings: Any) -> L.Trainer:
    return L.Trainer(
        accelerator=resolve_device(options.device).type,
        devices=options.devices,
        strategy=strategy,
        precision=options.precision,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )


class _Data(L.LightningDataModule):
    """Gives every process its part of the batches."""

    def __init__(self, batches: Batches, validation: Batches | DataLoader | None) -> None:
        super().__init__()
        self.batches, self.held = batches, validation

    def train_dataloader(self) -> Batches:
        """Return this process's training batches."""
        return self.batches.part(self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Batches | DataLoader | list:
        """Return this process's held-out batches."""
        if isinstance(self.held, Batches):
            return self.held.part(self.trainer.global_rank, self.trainer.world_size)
        return [] if self.held is None else self.held


class _Interrupted(Exception):  # noqa: N818 - it leaves Lightning's loop and never the kit
    """A signal was noted and the checkpoint is written."""


class _Keeper(Checkpoint):
    """Counts steps, keeps figures and checkpoints, shows the bar, ends the run.

    It is a `Checkpoint` so that Lightning calls it after all other callbacks, whose state it saves.
    """

    def __init__(self, run: Run | None, options: Fit, accumulate: int, validate_every: int | None) -> None:
        self.run, self.options, self.accumulate = run, options, accumulate
        self.validate_every = validate_every  # in batches
        self.step = 0
        self.saved: int | None = None  # the step of the checkpoint on disk
        self.resumed_at: int | None = None
        self.validation: dict[str, float] = {}
        self.interrupts = Interrupts()
        self._bar: Bar | None = None
        self._metrics: MetricsFile | None = None
        self._progress, self._open = True, ExitStack()
        self._restored: dict[str, Any] | None = None
        self._written = 0.0

    @contextmanager
    def running(self, progress: bool) -> Iterator[None]:
        """The block in which the trainer works: signals are noted, bar and figures are closed at its end."""
        self._progress = progress
        with self.interrupts, self._open:
            try:
                yield
            except (_Interrupted, Aborted):
                raise stopped_at(self.saved) from None

    # --- Lightning's hooks ---

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take up the figures of a resumed run."""
        if self._restored is not None:
            state, self._restored = self._restored, None
            self.step = self.saved = self.resumed_at = state["step"]
            self.validation = dict(state["validation"])
        if trainer.is_global_zero:
            self._begin()
        self._written = time.monotonic()
        trainer.should_stop = self.step >= self.options.max_steps

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Keep figures and checkpoint of a step, and end the run."""
        done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), torch.Tensor):
            loss = outputs["loss"]
            kept = kept_sentence(self.saved, self._folder)
            refuse_non_finite(iter([("loss", loss)]), done // self.accumulate, kept)
        if done % self.accumulate:
            return
        self.step = done // self.accumulate
        last = self.step >= self.options.max_steps
        figures = {
            name: value for name, value in trainer.callback_metrics.items() if not name.startswith(VALIDATION)
        }
        if last or self.step % self.options.log_every == 0:
            self._record(figures)
            shown = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
        else:
            shown = {}
        if self._bar is not None:
            self._bar.update(self.step, shown)
        if last:
            trainer.should_stop = True
        if self.validate_every is None or not (last or done % self.validate_every == 0):
            self._end_of_step(trainer, module, last)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the figures of a validation, then what is due at the end of its step."""
        self.validation = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(VALIDATION)
        }
        found = ((name, torch.tensor(value)) for name, value in self.validation.items())
        refuse_non_finite(found, self.step, kept_sentence(self.saved, self._folder))
        self._record(self.validation)
        self._end_of_step(trainer, module, self.step >= self.options.max_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the last validation."""
        return {"step": self.step, "validation": self.validation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember the state until training starts."""
        self._restored = state

    # --- Figures and the end of a step ---

    def _begin(self) -> None:
        self._bar = self._open.enter_context(
            Bar("training", self.options.max_steps, self.step, shown=self._progress)
        )
        if self.resumed_at is not None and self._progress:
            self._bar.say(f"resumed at step {self.resumed_at}")
        if self.run is not None:
            self._metrics = MetricsFile(self.run.folder, self.step)
            self._open.callback(self._metrics.close)

    def _record(self, figures: Mapping[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(self.step, figures)

    def _end_of_step(self, trainer: L.Trainer, module: L.LightningModule, last: bool) -> None:
        due = time.monotonic() - self._written >= 60 * self.options.checkpoint_every
        stop = self.interrupts.caught
        if trainer.world_size > 1:  # all processes save and stop together
            due, stop = trainer.strategy.broadcast((due, stop), src=0)
        if last or due or stop:
            self._save(trainer, module)
        if stop and not last:
            raise _Interrupted

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        names = ((f"the weight {name!r}", p) for name, p in module.named_parameters())
        refuse_non_finite(names, self.step, kept_sentence(self.saved, self._folder))
        if self.run is None:
            return
        if self._metrics is not None:
            self._metrics.flush()
        if trainer.is_global_zero:
            replace_checkpoint(self.run.last, lambda part: self._write(trainer, part))
        else:
            self._write(trainer, self.run.last)
        trainer.strategy.barrier()  # the file has its name when any process goes on
        self.saved, self._written = self.step, time.monotonic()

    @staticmethod
    def _write(trainer: L.Trainer, path: Path) -> None:
        trainer.save_checkpoint(path, weights_only=False)

    @property
    def _folder(self) -> Path | None:
        return None if self.run is None else self.run.folder
