"""A training run as a folder: settings, metrics, checkpoints and a `Trainer` that resumes exactly."""

import csv
import io
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: TID253
from cyclopts import Parameter
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar  # noqa: TID253
from lightning.pytorch.loggers import TensorBoardLogger  # noqa: TID253
from lightning.pytorch.utilities import rank_zero_only  # noqa: TID253
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # noqa: TID253
from noiseworks.core.artifacts import atomic_write, check_writable
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.csv"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
_ROWS_BETWEEN_WRITES = 20


class MetricsFile(Callback):
    """Keep `metrics.csv`: one row a logged batch, one column a metric; `step` counts finished batches from 1.

    The file is written with every checkpoint and in between. A resumed run drops the rows after its
    checkpoint, so in the end the file equals that of an uninterrupted run.

    Args:
        folder: The run's folder.
        log_every: Batches between two rows.
    """

    def __init__(self, folder: Path, log_every: int = 10) -> None:
        self.path, self.log_every = folder / METRICS_NAME, log_every
        self.rows: list[dict[str, str]] = []
        self.unwritten = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up the rows of a resumed run up to its checkpoint."""
        done = batches_done(trainer)
        if done and self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Add a row when it is due."""
        if batches_done(trainer) % self.log_every == 0:
            self._add(trainer, "train/")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add what the validation measured and write the file: the last checkpoint may be from just before it."""
        self._add(trainer, "val/")
        self.save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Write the file, so that it is never behind a checkpoint."""
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        self.save(trainer)

    def _add(self, trainer: L.Trainer, prefix: str) -> None:
        step = str(batches_done(trainer))
        values = {k: repr(float(v)) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": step, **values})
        self.unwritten += 1
        if self.unwritten >= _ROWS_BETWEEN_WRITES:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the file, on the first process."""
        self.unwritten = 0
        if not trainer.is_global_zero:
            return
        names = ["step", *sorted({name for row in self.rows for name in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, text.getvalue())


class RunLength(Callback):
    """Stop after a number of batches (Lightning's `max_steps` counts optimiser steps, which are two a batch).

    Args:
        batches: Batches of the whole run, or None.
    """

    def __init__(self, batches: int | None) -> None:
        self.batches = batches

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once when a resumed run is complete."""
        self.on_train_batch_end(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop when the last batch is done."""
        if self.batches is not None and batches_done(trainer) >= self.batches:
            trainer.should_stop = True


def batches_done(trainer: L.Trainer) -> int:
    """Return how many batches a run has finished, also over interruptions."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """Length, speed and bookkeeping of a training run.

    Attributes:
        batches: Batches of the whole run.
        max_time: Longest time, as DD:HH:MM:SS.
        batch_size: Examples of a batch and process.
        accumulate: Batches of an optimiser step, whose gradients are averaged. A run that max_time stops
            within a step forgets that step's batches.
        validate_every: Batches between two validations; by default once an epoch.
        checkpoint_minutes: Minutes between two checkpoints.
        checkpoint_batches: Batches between two checkpoints, instead of minutes.
        log_every: Batches between two rows of metrics.csv.
        num_workers: Loading processes.
        accelerator: As in Lightning: auto, cpu, cuda ...
        devices: Number of processes.
        strategy: As in Lightning; auto means DDP when there are several processes.
        precision: As in Lightning, for example bf16-mixed.
        seed: Seed of weights, data order and noise.
        resume: Go on with the run that was begun in the folder.
    """

    batches: int | None = None
    max_time: str | None = None
    batch_size: int = 8
    accumulate: int = 1
    validate_every: int | None = None
    checkpoint_minutes: float = 5.0
    checkpoint_batches: int | None = None
    log_every: int = 10
    num_workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    resume: bool = False


class Checkpoints(Callback):
    """Write the checkpoint every so many batches or minutes, at the end of an optimiser step.

    `ModelCheckpoint` would count optimiser steps, two a batch in a first stage, and would stop in the middle
    of accumulated gradients, which no checkpoint holds.

    Args:
        folder: Where `last.ckpt` is written.
        run: Its `checkpoint_batches`, or else `checkpoint_minutes`, and `accumulate`.
    """

    def __init__(self, folder: Path, run: RunOptions) -> None:
        self.folder, self.run, self.written = folder, run, time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.written = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Write the checkpoint when it is due."""
        done = batches_done(trainer)
        if done % self.run.accumulate == 0 and self._due(trainer, done):
            trainer.save_checkpoint(self.folder / CHECKPOINT.name, weights_only=False)
            self.written = time.monotonic()

    def _due(self, trainer: L.Trainer, done: int) -> bool:
        if self.run.checkpoint_batches is not None:
            return done % self.run.checkpoint_batches == 0
        due = time.monotonic() - self.written >= 60 * self.run.checkpoint_minutes
        return trainer.strategy.broadcast(due, src=0)  # all processes save together


def open_run(out: Path, settings: Mapping[str, Any], resume: bool) -> Path | None:
    """Prepare a run's folder and return the checkpoint to go on from, if there is one.

    Call it once all other input has been checked: it is the first thing that writes.

    Args:
        out: The run's folder.
        settings: What the run is, JSON-serialisable; written to `config.yaml`. A resumed run must have the
            same.
        resume: Whether a run that was begun in `out` goes on.

    Raises:
        InputError: When the folder cannot be written, holds another run, or the settings differ.
    """
    check_writable(out)
    written, checkpoint = out / CONFIG_NAME, out / CHECKPOINT
    if rank_zero_only.rank:  # further processes start when the first one has done this
        return checkpoint if resume and checkpoint.is_file() else None
    settings = json.loads(json.dumps(settings, default=str))
    if not written.is_file():
        # JSON is YAML: the settings are readable as either.
        atomic_write(written, json.dumps(settings, indent=2) + "\n")
        return None
    if not resume:
        raise InputError(f"{out} already holds a run; add --resume to go on with it, or name another folder")
    before = json.loads(written.read_text())
    for name, value in settings.items():
        if before.get(name) != value:
            raise InputError(
                f"{out} was begun with {name}={before.get(name)!r}, now {value!r}; resume with the former"
            )
    return checkpoint if checkpoint.is_file() else None


def make_trainer(
    out: Path, run: RunOptions, callbacks: tuple[Callback, ...] = (), *, accumulate: int = 1
) -> L.Trainer:
    """Return a `Trainer` that logs to and checkpoints in a run's folder; nothing is written yet.

    Args:
        out: The run's folder.
        run: Length, speed and bookkeeping.
        callbacks: Further callbacks.
        accumulate: Batches of an optimiser step, where the `Trainer` and not the module counts them.

    Raises:
        InputError: When nothing bounds the run, or a value is out of range.
    """
    if run.batches is None and run.max_time is None:
        raise InputError("a run needs an end: give batches or max_time")
    check_number("accumulate", run.accumulate, low=1, integer=True)
    for name in ("batches", "checkpoint_batches", "validate_every"):
        if getattr(run, name) is not None:
            check_number(name, getattr(run, name), low=1, integer=True)
            _check_whole_steps(name, getattr(run, name), run.accumulate)
    check_number("devices", run.devices, low=1, integer=True)
    check_number("checkpoint_minutes", run.checkpoint_minutes, low=0, low_open=True)
    check_writable(out)
    saving = Checkpoints(out / CHECKPOINT.parent, run)
    bar = [RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else []
    several = run.devices > 1 and run.strategy == "auto"
    try:
        return L.Trainer(
            default_root_dir=out,
            max_epochs=-1,
            max_time=run.max_time,
            accelerator=run.accelerator,
            devices=run.devices,
            # The autoencoder's and the discriminator's steps each leave the other one's parameters unused.
            strategy="ddp_find_unused_parameters_true" if several else run.strategy,
            precision=run.precision,
            accumulate_grad_batches=accumulate,
            log_every_n_steps=run.log_every,
            val_check_interval=run.validate_every,
            check_val_every_n_epoch=None if run.validate_every else 1,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(out, name="", version="tensorboard"),
            callbacks=[*callbacks, RunLength(run.batches), *bar, MetricsFile(out, run.log_every), saving],
            enable_progress_bar=bool(bar),
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"Lightning refuses these settings: {error}") from error


def _check_whole_steps(name: str, batches: int, accumulate: int) -> None:
    if batches % accumulate:
        raise InputError(
            f"{name} must be a multiple of accumulate ({accumulate}), got {batches}: batches are counted, and "
            "a checkpoint holds no half-finished step"
        )
