"""What `train` and `export` do: latent diffusion of any task, from data to a diffusers pipeline."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.backbones import load_autoencoder
from noiseworks.kits.training import Batches, TensorTable, fit, open_run, read_settings
from noiseworks.kits.training.batches import Transform
from noiseworks.kits.training.folder import CHECKPOINT
from noiseworks.ldm.conditioning.conditioners import Conditioner, LayoutConditioner, TextConditioner
from noiseworks.ldm.conditioning.spatial import low_resolution, random_masks
from noiseworks.ldm.conditioning.task_data import TaskData, WithColumns, load_task_data
from noiseworks.ldm.conversion.export import export_diffusers
from noiseworks.ldm.data import Rows, holdout
from noiseworks.ldm.diffusion.objective import make_scheduler
from noiseworks.ldm.diffusion.recipes import make_conditioner, make_unet
from noiseworks.ldm.diffusion.scaling import LatentCache, cache_latents
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
from noiseworks.ldm.options import DiffusionOptions, Images, RunOptions
from torch import Tensor, nn
from torch.utils.data import Dataset


@dataclass(frozen=True)
class TrainedDiffusion:
    """What the training made.

    Attributes:
        pipeline: Directory of the diffusers pipeline, with averaged weights.
        batches: Batches trained.
        val_loss: Held-out loss of the averaged weights.
        scale_factor: What latents are multiplied with.
        kind: Class of the pipeline.
    """

    pipeline: Path
    batches: int
    val_loss: float
    scale_factor: float
    kind: str


def build(
    task: str, data: TaskData, vae: nn.Module, options: DiffusionOptions, run: RunOptions
) -> LatentDiffusionTrainer:
    """Return the trainer of a task on its data.

    Raises:
        InputError: When options, first stage and images do not fit.
    """
    made_by = options.recipe(task)
    sides = data.images[0]["image"].shape[-2:]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if sides[0] != sides[1] or sides[0] % factor:
        raise InputError(
            f"images must be square with a side that is a multiple of f = {factor}, got {tuple(sides)}"
        )
    channels = vae.config.latent_channels
    conditioner = make_conditioner(task, made_by, data, vae, options, run.seed)
    if options.text_encoder is not None and task.startswith("text"):
        made_by = replace(made_by, context=conditioner.dim)
    is_vq = type(vae).__name__ == "VQModel"
    return LatentDiffusionTrainer(
        make_unet(task, made_by, channels, sides[0] // factor, run.seed),
        vae,
        conditioner,
        make_scheduler(
            options.beta_schedule,
            made_by.beta_start,
            made_by.beta_end,
            prediction_type=options.prediction_type,
        ),
        loss=made_by.loss,
        learning_rate=made_by.learning_rate,
        scale_lr=made_by.scale_lr,
        batch_size=run.batch_size // run.devices,
        scale_factor=options.scale_factor or (1.0 if is_vq else "std"),
        condition_drop=options.condition_drop,
        ema_decay=options.ema_decay,
        warmup_steps=options.warmup_steps,
        seed=run.seed,
    )


def condition_tensors(task: str, data: TaskData, conditioner: Conditioner | None) -> dict[str, Tensor]:
    """Return the conditions of all rows as tensors, under the conditioner's batch keys."""
    if data.column is None:
        return {}
    if isinstance(conditioner, TextConditioner):
        return {"input_ids": conditioner.tokenize([str(caption) for caption in data.column])}
    if isinstance(conditioner, LayoutConditioner):
        return {"layout_ids": conditioner.tokenize(data.column)}
    name = {"class": "label", "semantic": "segmentation"}[task]
    return {name: torch.as_tensor(data.column).long()}


def with_masks(batch: dict, generator: torch.Generator) -> dict:
    """Add random masks to a batch with `image`: the transform of inpainting."""
    return batch | {"mask": random_masks(len(batch["image"]), *batch["image"].shape[-2:], generator)}


def prepare_rows(
    task: str, data: TaskData, module: LatentDiffusionTrainer, options: DiffusionOptions, out: Path
) -> tuple[Dataset, Transform | None]:
    """Return the rows that training reads, with cached latents where possible, and the batch transform.

    The cache lies in `out/latents`.
    """
    factor = 2 ** (len(module.vae.config.block_out_channels) - 1)
    columns = condition_tensors(task, data, module.conditioner)
    if task == "inpaint":
        return data.images, with_masks
    if task == "upscale":
        low = [low_resolution(data.images[i]["image"][None], factor) for i in range(len(data.images))]
        columns = {"low_res": torch.cat(low)}
    rows = WithColumns(data.images, columns)
    if not options.cache:
        return rows, None
    cached = cache_latents(module.vae, data.images, out / "latents")
    if isinstance(cached, LatentCache) and len(cached) <= cached.config["shard_rows"]:
        # One file fits into memory many times over.
        cached = TensorTable(cached.__getitems__(range(len(cached))))
    return WithColumns(cached, columns), None


def run_training(settings: Mapping[str, Any], out: Path) -> TrainedDiffusion:
    """Train in a folder and write the pipeline; see the command `train`.

    Args:
        settings: `task`, `images`, `vae`, `model` and `run`: options as the command has them, which name the run.
        out: The run's folder.

    Raises:
        InputError: When the data do not fit, or `out` holds another run.
    """
    task, images, vae, model, run = (settings[name] for name in ("task", "images", "vae", "model", "run"))
    first_stage = load_autoencoder(vae)
    loaded = load_task_data(task, images)
    parts = holdout(loaded.images, images.validation_share, run.seed)
    # Before the latents are cached: the batch must fit.
    Batches(Rows(loaded.images, parts[0]), run.batch_size, accumulate=run.accumulate)
    module = build(task, loaded, first_stage, model, run)
    with open_run(out, settings) as opened:
        rows, transform = prepare_rows(task, loaded, module, model, out)
        common = {"seed": run.seed, "num_workers": run.num_workers, "transform": transform}
        held = min(run.batch_size, len(parts[1]) // run.devices * run.devices) or run.devices
        done = fit(
            module,
            Batches(Rows(rows, parts[0]), run.batch_size, accumulate=run.accumulate, **common),
            run=opened,
            options=run,
            validation=Batches(Rows(rows, parts[1]), held, repeat=True, **common),
            validate_every=run.validate_every,
        )
        if module.global_rank == 0:
            export_diffusers(module, out / "pipeline")
    index = json.loads((out / "pipeline" / "model_index.json").read_text())
    return TrainedDiffusion(
        out / "pipeline",
        module.batches_seen,
        done.validation["val/loss_ema"],
        float(module.scale_factor),
        index["_class_name"],
    )


@dataclass(frozen=True)
class Exported:
    """What the export made.

    Attributes:
        pipeline: The directory.
        kind: Class of the pipeline.
        batches: Batches that the checkpoint had seen.
    """

    pipeline: Path
    kind: str
    batches: int


def export_run(run: Path, out: Path, *, ema: bool = True) -> Exported:
    """Write the last checkpoint of a training run as a diffusers pipeline.

    Args:
        run: Folder of a run of train, finished or not; its data and first stage must still be there.
        out: The directory to make or replace.
        ema: Whether the averaged weights are taken.

    Raises:
        ArtifactError: When the folder holds no run with a checkpoint.
    """
    run, checkpoint = Path(run), Path(run) / CHECKPOINT
    settings = read_settings(run)
    if not checkpoint.is_file() or "task" not in settings:
        raise ArtifactError(
            f"{run} holds no training run with a checkpoint ({CHECKPOINT}); name a folder of train"
        )
    options, run_options = DiffusionOptions(**settings["model"]), RunOptions(**settings["run"])
    loaded = load_task_data(settings["task"], Images(**settings["images"]))
    module = build(settings["task"], loaded, load_autoencoder(settings["vae"]), options, run_options)
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(stored["state_dict"])
    module.on_load_checkpoint(stored)
    export_diffusers(module, out, ema=ema)
    index = json.loads((Path(out) / "model_index.json").read_text())
    return Exported(Path(out), index["_class_name"], module.batches_seen)
