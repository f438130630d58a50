"""What `noiseworks-ldm` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import HOST_FOLDER, FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Place, Spread, Whole
from noiseworks.kits.training import check_run
from noiseworks.ldm.options import (
    Asked,
    AutoencoderOptions,
    DiffusionOptions,
    Evaluation,
    Images,
    LossOptions,
    RunOptions,
    SampleSettings,
    Task,
)

IMAGES = FolderKind("ldm/images", ("[0-9]*.png", "config.yaml"), "config.yaml")


def train_autoencoder(
    *,
    images: Spread[Images],
    out: Path,
    model: Spread[AutoencoderOptions] = AutoencoderOptions(),
    loss: Spread[LossOptions] = LossOptions(),
    run: Spread[RunOptions] = RunOptions(),
) -> Any:
    """Train a first stage and write it as a diffusers autoencoder, `OUT/vae`.

    The same command goes on with a run that was stopped, to the numbers of an uninterrupted one.

    Args:
        images: The images.
        out: The run's folder.
        model: The autoencoder.
        loss: The loss and its optimisers.
        run: Length, speed and bookkeeping.

    Returns:
        The autoencoder's directory, its smallest validation loss and the scale of its latents.
    """
    settings = {"images": images, "model": model, "loss": loss, "run": run}
    check_run(out, settings)
    check_folder(out / "vae", HOST_FOLDER, sources=(images.data,))
    images.check_present()
    if run.devices > 1 and loss.adversarial and loss.disc_norm == "batch":
        raise InputError(
            "several processes need --disc-norm group: batch statistics would differ between them"
        )
    from noiseworks.ldm.first_stage.autoencoding import run_training

    return run_training(settings, out)


def evaluate_autoencoder(
    *,
    model: str,
    images: Spread[Images],
    evaluation: Spread[Evaluation] = Evaluation(),
    place: Spread[Place] = Place(),
) -> Any:
    """Measure an autoencoder on images: PSNR, SSIM, Fréchet distance in trained features, codebook use.

    Args:
        model: An AutoencoderKL or VQModel: a directory, a hub id or testbed:<name>.
        images: The images.
        evaluation: What is measured.
        place: Where it runs.

    Returns:
        The figures.
    """
    resolve_model(model)
    images.check_present()
    from noiseworks.ldm.first_stage.evaluation import evaluate

    return evaluate(model, images, evaluation, place.torch_device())


def train(
    *,
    task: Task,
    images: Spread[Images],
    vae: str,
    out: Path,
    model: Spread[DiffusionOptions] = DiffusionOptions(),
    run: Spread[RunOptions] = RunOptions(),
) -> Any:
    """Train a latent diffusion model and write it as a diffusers pipeline, `OUT/pipeline`.

    The same command goes on with a run that was stopped, to the numbers of an uninterrupted one.

    Args:
        task: What the images are conditioned on.
        images: The images and their conditions.
        vae: The first stage: a directory, a hub id or testbed:<name>.
        out: The run's folder.
        model: The model and its training.
        run: Length, speed and bookkeeping.

    Returns:
        The pipeline's directory and class, the held-out loss and the scale of the latents.
    """
    settings = {"task": task, "images": images, "vae": vae, "model": model, "run": run}
    check_run(out, settings)
    check_folder(out / "pipeline", HOST_FOLDER, sources=(images.data, vae))
    images.check_present(scenes=True)
    resolve_model(vae)
    from noiseworks.ldm.diffusion.training import run_training

    return run_training(settings, out)


def sample_images(
    *,
    model: str,
    out: Path,
    asked: Spread[Asked] = Asked(),
    num: Whole = 1,
    settings: Spread[SampleSettings] = SampleSettings(),
    place: Spread[Place] = Place(),
) -> Any:
    """Sample images: of captions, classes, layouts or maps, enlarged, with a hole filled, or of nothing.

    Args:
        model: A pipeline: a directory, a hub id or testbed:<name>.
        out: Folder of the images.
        asked: What is asked for.
        num: Images of each condition.
        settings: The sampler.
        place: Where it runs.

    Returns:
        The image files.
    """
    if num < 1:
        raise InputError(f"num must be at least 1, got {num}")
    check_folder(out, IMAGES, sources=(model, *asked.files))
    resolve_model(model)
    from noiseworks.ldm.drawing import draw_into

    return draw_into(out, IMAGES, {"model": model, "num": num, "asked": asked, "settings": settings}, place)


def export(*, run: Path, out: Path, ema: bool = True) -> Any:
    """Write the last checkpoint of a training run as a diffusers pipeline.

    Args:
        run: Folder of a run of train, finished or not; its data and first stage must still be there.
        out: The directory to make or replace.
        ema: Whether the averaged weights are taken.

    Returns:
        The directory, the pipeline's class and the batches that the checkpoint had seen.
    """
    check_folder(out, HOST_FOLDER, sources=(run,))
    from noiseworks.ldm.diffusion.training import export_run

    return export_run(run, out, ema=ema)


def import_ldm(
    *, checkpoint: Path, config: Path, out: Path, ema: bool = True, tokenizer: str | None = None
) -> Any:
    """Convert an original checkpoint to a diffusers pipeline, or an original first stage to an autoencoder.

    Args:
        checkpoint: A .ckpt or .pt of tensors, or a .safetensors file.
        config: The model's original YAML file.
        out: The directory to make or replace.
        ema: Whether averaged weights are taken where the checkpoint has them.
        tokenizer: Directory or hub id of the text encoder's tokenizer, BERT's or CLIP's, for text models.

    Returns:
        The directory, and the class of the pipeline or first stage.
    """
    check_folder(out, HOST_FOLDER, sources=(checkpoint, config, tokenizer))
    for path in (checkpoint, config):
        if not path.is_file():
            raise InputError(f"no file {path}")
    if tokenizer is not None:
        resolve_model(tokenizer)
    from noiseworks.ldm.conversion.originals import convert

    return convert(checkpoint, config, out, ema=ema, tokenizer=tokenizer)
