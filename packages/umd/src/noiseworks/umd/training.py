"""Pre-training without labels, fine-tuning with them, and the auto-encoder as an artifact."""

from dataclasses import asdict
from pathlib import Path

import torch
from noiseworks.core.artifacts import save_artifact
from noiseworks.core.schedules import table_schedule
from noiseworks.kits.backbones import fit_loss, load_network
from noiseworks.kits.training import Run
from noiseworks.umd.mixture import mixture_loss
from noiseworks.umd.model import UMD, UNDECAYED
from noiseworks.umd.options import FineTuning, Mixture, Pretraining, UMDConfig
from torch import Tensor

KIND = "umd/model"


def pretrain_model(
    config: UMDConfig,
    images: Tensor,
    mixture: Mixture,
    recipe: Pretraining,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> UMD:
    """Train a new auto-encoder without labels.

    Args:
        config: Its sizes.
        images: (n, C, H, W) in [-1, 1].
        mixture: Shares and mask ratios.
        recipe: How it is trained.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = UMD(config)
    schedule = table_schedule(recipe.schedule)

    def loss(model: UMD, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return mixture_loss(model, batch["x"], None, mixture, schedule)

    return fit_loss(
        model,
        {"x": images},
        loss,
        recipe,
        run=run,
        undecayed=UNDECAYED,
        unused_parameters=not_all_used(mixture, recipe),
        progress=progress,
    )


def not_all_used(mixture: Mixture, recipe: Pretraining | FineTuning) -> bool:
    """Return whether a process's share of a batch leaves parameters without gradients (several processes must know)."""
    rows = recipe.batch_size // recipe.devices
    most = -(-mixture.clean_rows(recipe.batch_size) // recipe.devices)  # noise-free ones of a process
    return most == rows or mixture.values[2] == 0


def finetune_model(
    model: UMD,
    images: Tensor,
    labels: Tensor,
    mixture: Mixture,
    recipe: FineTuning,
    schedule: str,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> UMD:
    """Train a pre-trained auto-encoder to draw images of a class, and return its average.

    Args:
        model: The auto-encoder; it gets fresh labels, also where it had some.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,), from 0.
        mixture: Shares and mask ratios, as `Mixture.fine_tuning` makes them of those of pre-training.
        recipe: How it is trained.
        schedule: Kind of the noise schedule that it was trained with.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        made = model.with_classes(int(labels.max()) + 1).requires_grad_(True).train()
    levels = table_schedule(schedule)

    def loss(model: UMD, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return mixture_loss(model, batch["x"], batch["y"], mixture, levels, recipe.label_drop)

    rows = {"x": images, "y": labels}
    unused = not_all_used(mixture, recipe)
    return fit_loss(
        made, rows, loss, recipe, run=run, undecayed=UNDECAYED, unused_parameters=unused, progress=progress
    )


def save_model(path: str | Path, model: UMD, *, schedule: str, mixture: Mixture) -> None:
    """Write a model, the kind of its noise schedule and the mixture it learned from."""
    config = {"model": asdict(model.config), "schedule": schedule, "mixture": asdict(mixture)}
    save_artifact(path, KIND, config, model.state_dict())


def load_model(path: str | Path) -> tuple[UMD, str, Mixture]:
    """Read a model that `save_model` wrote.

    Args:
        path: The folder.

    Returns:
        The model in evaluation mode, the kind of its schedule, and its mixture.

    Raises:
        ArtifactError: When the folder holds no such model.
    """
    model, about = load_network(
        path,
        KIND,
        lambda config: (
            UMD(UMDConfig(**config["model"])),
            (config["schedule"], Mixture(**config["mixture"])),
        ),
    )
    return model, *about
