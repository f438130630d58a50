"""Training of the shipped testbed models within a time budget, resumable at any moment.

`noiseworks bench train-testbed NAME --budget MINUTES` trained the weights that ship. A run's folder holds
`data.safetensors` (the training set), `checkpoints/last.ckpt`, `metrics.csv` files and `model`: the best
model so far in its host's format with its card.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import lightning as L  # noqa: TID253
import torch
from lightning.pytorch.callbacks import RichProgressBar  # noqa: TID253
from lightning.pytorch.loggers import CSVLogger  # noqa: TID253
from lightning.pytorch.strategies import DDPStrategy  # noqa: TID253
from noiseworks.bench.testbeds.cards import CARD_NAME, model_size, write_card
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory, check_folder, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import InputError
from noiseworks.kits.training import Batches, Position
from safetensors.torch import load_file, save_file

Captions = Literal["noisy", "clean"]


@dataclass(frozen=True)
class Recipe:
    """How one testbed model is trained.

    Attributes:
        prepare: (captions, rows or None) -> the training set as named tensors; slow, done once a run.
        build: training set -> Lightning module with the weights at their start.
        publish: (module, folder) -> writes the model in its host's format.
        tune: (folder of a published model, n) -> figures; `share_right` selects the model that is kept.
        measure: (folder of a published model, n) -> the card's figures with intervals.
        learning_rate: Peak rate; warmed up over `warmup_steps`, then a cosine over the budget.
        batch_size: Rows of a batch, over all processes.
        precision: Lightning's precision.
        rows: Rows that `prepare` draws unless told otherwise.
        captioned: Whether rows have noisy and clean captions.
        about: Facts for the card: name, class, what it is, data.
        seed: Of the weights that `build` starts from.
    """

    prepare: Callable[[Captions, int | None], dict[str, torch.Tensor]]
    build: Callable[[dict[str, torch.Tensor]], L.LightningModule]
    publish: Callable[[L.LightningModule, Path], None]
    tune: Callable[[Path, int], dict[str, float]]
    measure: Callable[[Path, int], dict[str, dict[str, float]]]
    learning_rate: float
    batch_size: int
    rows: int
    captioned: bool = False
    precision: str = "32-true"
    warmup_steps: int = 100
    about: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


class Budget(L.Callback):
    """Time budget, learning rate along it, and publication of the best model so far.

    The rate follows the share of the budget that is used up, so a run on a slower or busier machine takes
    fewer steps and still ends with a small rate. The time used is kept in checkpoints.

    Args:
        recipe: What is trained.
        minutes: Training time in all, over every resumed part.
        folder: Where the model goes.
        every: Minutes between evaluations.
        checkpoint_every: Minutes between checkpoints.
        captions: Which captions the run uses, for the card.
        clean_until: Share of the budget up to which batches hold clean captions.
        sample: Images, problems or episodes of an evaluation along the way.
        command: The command that runs, for the card.
    """

    def __init__(
        self,
        recipe: Recipe,
        minutes: float,
        folder: Path,
        *,
        every: float,
        checkpoint_every: float,
        captions: Captions,
        clean_until: float,
        sample: int,
        command: str,
    ) -> None:
        self.recipe, self.seconds, self.folder, self.every = recipe, 60 * minutes, folder, 60 * every
        self.checkpoint_every, self.captions, self.sample = 60 * checkpoint_every, captions, sample
        self.clean_until, self.commands = clean_until, [command]
        self.used, self.evaluated, self.best = 0.0, 0.0, -1.0
        self.share, self.saved = 0.0, 0.0

    def factor(self, step: int) -> float:
        """Return the factor of the peak rate: linear warm-up, then a half cosine over the budget to 2 %."""
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.share)))
        return cosine * min(1.0, (step + 1) / self.recipe.warmup_steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        """Set the learning rate and the batch's captions; all processes use the first one's clock."""
        self._tick = time.monotonic()
        if trainer.world_size == 1 or self.steps(trainer) % 10 == 0:
            self.share = trainer.strategy.broadcast(self.used / self.seconds, src=0)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self.factor(self.steps(trainer))
        if self.share < self.clean_until:
            clean = {key.removeprefix("clean_"): batch[key] for key in batch if key.startswith("clean_")}
            batch.update(clean)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        """Clip gradients to norm 1; `Trainer(gradient_clip_val=...)` refuses modules that step by hand."""
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)

    def steps(self, trainer: L.Trainer) -> int:
        """Return the batches trained on."""
        return trainer.global_step // max(1, len(trainer.optimizers))

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Count the time, publish now and then, and stop when the budget is used up."""
        self.used += time.monotonic() - self._tick
        over = self.share >= 1.0
        # A model of the clean phase would be the better one at following captions, and guidance void on it.
        noisy = self.share >= self.clean_until
        due = trainer.is_global_zero and (over or (noisy and self.used - self.evaluated >= self.every))
        if due:
            self.publish(trainer, module)
        # The share is the same in all processes, which save together.
        if over or (self.share - self.saved) * self.seconds >= self.checkpoint_every:
            self.saved = self.share
            trainer.save_checkpoint(self.folder / "checkpoints" / "last.ckpt", weights_only=False)
        if over:
            trainer.should_stop = True

    def publish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluate the model on tuning seeds and keep it when it is the best so far."""
        self.evaluated = self.used
        with torch.random.fork_rng(devices=[]), torch.autocast(module.device.type, enabled=False):
            with atomic_directory(self.folder / "candidate", HOST_FOLDER) as candidate:
                self.recipe.publish(module, candidate)
            figures = self.recipe.tune(self.folder / "candidate", self.sample)
        for logger in trainer.loggers:
            logger.log_metrics(figures | {"minutes": self.used / 60}, self.steps(trainer))
            logger.save()
        # After a clean phase the last model counts: the noisy rest has to run its course.
        if self.clean_until > 0 or figures["share_right"] >= self.best:
            self.best = figures["share_right"]
            training = {"captions": self.captions} if self.recipe.captioned else {}
            training |= {
                "commands": self.commands,
                "minutes": round(self.used / 60, 1),
                "steps": self.steps(trainer),
                "batch_size": self.recipe.batch_size,
            }
            with atomic_directory(self.folder / "model", HOST_FOLDER) as kept:
                shutil.copytree(self.folder / "candidate", kept, dirs_exist_ok=True)
                write_card(kept, {**self.recipe.about, "training": training})

    def state_dict(self) -> dict[str, Any]:
        """Return the clock and the commands so far."""
        clock = {"used": self.used, "evaluated": self.evaluated, "best": self.best}
        return clock | {"commands": self.commands}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the clock, and remember the commands of the earlier parts."""
        self.used, self.evaluated, self.best = state["used"], state["evaluated"], state["best"]
        if state["commands"][-1] != self.commands[-1]:
            self.commands = [*state["commands"], *self.commands]
        else:
            self.commands = state["commands"]
        self.share = self.saved = self.used / self.seconds


class Rows(L.LightningDataModule):
    """The training set of a run, read from its file in every process."""

    def __init__(self, path: Path, batch_size: int) -> None:
        super().__init__()
        self.path, self.batch_size = path, batch_size

    def train_dataloader(self) -> Batches:
        """Return a loader whose position is part of the checkpoint."""
        batches = Batches(load_file(self.path), self.batch_size)
        return batches.part(self.trainer.global_rank, self.trainer.world_size)


def recipes() -> dict[str, Recipe]:
    """Return the recipes by the name that follows `testbed:`."""
    from noiseworks.bench.testbeds.countdown.recipes import RECIPES as TEXT
    from noiseworks.bench.testbeds.digits.recipes import RECIPES as DIGITS
    from noiseworks.bench.testbeds.maze.recipes import RECIPES as MAZES
    from noiseworks.bench.testbeds.metaworld.recipes import RECIPES as SIMULATED
    from noiseworks.bench.testbeds.shapes.recipes import RECIPES as IMAGES
    from noiseworks.bench.testbeds.tabletop.recipes import RECIPES as POLICIES

    return {**IMAGES, **DIGITS, **TEXT, **POLICIES, **SIMULATED, **MAZES}


def train_testbed(
    name: str,
    budget: float = 20.0,
    out: Path | None = None,
    device: str = "auto",
    resume: bool = True,
    captions: Captions = "noisy",
    clean_until: float = 0.0,
    processes: int = 1,
    rows: int | None = None,
    evaluate_every: float = 4.0,
    checkpoint_every: float = 2.0,
    tune_sample: int = 100,
    card_sample: int = 300,
) -> dict[str, Any]:
    """Train a testbed model from scratch within a time budget; a stopped run goes on where it stopped.

    Args:
        name: `shapes-vae`, `shapes`, `shapes-sd3` or `shapes-dit` (the last three use the shipped
            `shapes-vae`), `shapes-inpaint` or `shapes-few` (of the shipped `shapes`), `shapes-vae-narrow` or
            `shapes-inpaint-narrow` (which uses it), `shapes-pixels`, `shapes-clip`, `digits-pixels`; `countdown`,
            `countdown-dream` or `countdown-ar`; `tabletop-unet`, `tabletop-unet-scaled` or
            `tabletop-transformer`; `maze-routes` or `maze-routes-slow`.
        budget: Minutes of training in all; data preparation and evaluation are not counted.
        out: The run's folder, by default `testbeds/<name>` in the current folder; the model is `<out>/model`.
        device: `auto`, `cpu` or `cuda`.
        resume: Whether to go on from `<out>/checkpoints/last.ckpt` when it is there, or to refuse a used
            folder.
        captions: `noisy` as shipped, or `clean` and complete ones: the control on which guidance has nothing
            to do.
        clean_until: Share of the budget that is trained on clean captions before the noisy ones. Conditions are
            learned faster on them; the noisy rest sets how far a caption is trusted.
        processes: CPU processes that share each batch.
        rows: Size of the training set, by default the recipe's.
        evaluate_every: Minutes between evaluations, at each of which the best model so far is published.
        checkpoint_every: Minutes between checkpoints.
        tune_sample: Images, problems or episodes of such an evaluation.
        card_sample: Images, problems or episodes of each figure of the card.

    Returns:
        The card.

    Raises:
        InputError: When an argument is out of range or the folder is used and `resume` is false.
    """
    known = recipes()
    check_choice("name", name, tuple(known))
    check_choice("captions", captions, ("noisy", "clean"))
    check_number("budget", budget, low=0, low_open=True)
    check_number("evaluate_every", evaluate_every, low=0, low_open=True)
    check_number("clean_until", clean_until, low=0, high=1)
    check_number("checkpoint_every", checkpoint_every, low=0, low_open=True)
    check_number("processes", processes, low=1, integer=True)
    for option, value in (("rows", rows), ("tune_sample", tune_sample), ("card_sample", card_sample)):
        if value is not None:
            check_number(option, value, low=1, integer=True)
    resolve_device(device)
    recipe = known[name]
    if not recipe.captioned and (captions != "noisy" or clean_until > 0):
        raise InputError(f"{name} has no captions; leave out captions and clean_until")
    folder = check_writable(out or Path("testbeds") / name)
    for part in ("candidate", "model"):
        check_folder(folder / part, HOST_FOLDER)
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists() and not resume:
        raise InputError(f"{folder} holds a run already; resume it or name another folder")
    data = _prepare(folder, recipe, captions, rows)
    budget_callback = Budget(
        recipe,
        budget,
        folder,
        every=evaluate_every,
        checkpoint_every=checkpoint_every,
        captions=captions,
        clean_until=clean_until,
        sample=tune_sample,
        command=_command(name, budget, captions, clean_until, processes),
    )
    trainer = _trainer(folder, recipe, budget_callback, device, processes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = recipe.build(load_file(data))
    loader = Rows(data, recipe.batch_size)
    trainer.fit(module, datamodule=loader, ckpt_path=last if last.exists() else None, weights_only=True)
    return complete_card(name, folder / "model", card_sample)


def _command(name: str, budget: float, captions: Captions, clean_until: float, processes: int) -> str:
    """Return the command line of a run, without the options that do not change its result."""
    options = [f"--budget {budget:g}", f"--processes {processes}"]
    options += [f"--captions {captions}"] * (captions != "noisy")
    options += [f"--clean-until {clean_until:g}"] * (clean_until > 0)
    return " ".join(["noiseworks bench train-testbed", name, *options])


def complete_card(name: str, model: Path, n: int) -> dict[str, Any]:
    """Measure a published model and complete its card.

    Args:
        name: Name of the recipe.
        model: The model's folder, which holds a card with the facts of its training.
        n: Images, problems or episodes of each figure.

    Returns:
        The card.
    """
    recipe, facts = recipes()[name], json.loads((model / CARD_NAME).read_text())
    hardware = {"hardware": f"{os.cpu_count()} CPU cores", "date": date.today().isoformat()}
    facts = {
        **recipe.about,
        "size": model_size(model),
        "training": {"rows": recipe.rows, **hardware, **facts["training"]},
        "quality": recipe.measure(model, n),
    }
    write_card(model, facts)
    return facts


def _prepare(folder: Path, recipe: Recipe, captions: Captions, rows: int | None) -> Path:
    path = folder / "data.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(recipe.prepare(captions, rows), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return path


def _trainer(folder: Path, recipe: Recipe, budget: Budget, device: str, processes: int) -> L.Trainer:
    accelerator = resolve_device(device).type
    if processes > 1 and accelerator != "cpu":
        raise InputError(f"processes > 1 shares batches among CPU processes, got device {accelerator!r}")
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo") if processes > 1 else "auto"
    return L.Trainer(
        accelerator=accelerator,
        devices=processes,
        strategy=strategy,
        precision=recipe.precision,
        max_epochs=-1,
        logger=CSVLogger(folder, name="logs", flush_logs_every_n_steps=200),
        log_every_n_steps=50,
        callbacks=[Position(), budget, RichProgressBar(refresh_rate=50)],
        enable_checkpointing=False,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
