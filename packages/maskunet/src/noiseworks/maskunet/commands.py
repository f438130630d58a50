"""What `noiseworks-maskunet` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, atomic_directory
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware, Sampling
from noiseworks.maskunet.options import (
    FAMILIES,
    TUNABLE,
    Bench,
    Compared,
    MaskConfig,
    Pictures,
    RandomMasks,
    RewardSchedule,
    Scorers,
    Training,
    Use,
)

CONFIG = "config.yaml"
IMAGES = FolderKind("maskunet/images", ("*.png", CONFIG), CONFIG)
COMPARISON = FolderKind("maskunet/comparison", ("comparison.csv", "images.png", CONFIG), CONFIG)


def train(
    *,
    model: str,
    pictures: Spread[Pictures],
    out: Path,
    masks: Spread[MaskConfig] = MaskConfig(),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Train masks for a pipeline on images with texts; the same command goes on with a stopped run.

    Args:
        model: A text-to-image pipeline (Stable Diffusion 1, 2, XL, 3, FLUX): a directory, a hub id or testbed:<name>.
        pictures: What masks are trained on.
        out: Folder of the run; the masks are in `masks` inside of it.
        masks: What is masked.
        training: How long and how.

    Returns:
        The folder of the masks, steps, and how many numbers they are.
    """
    settings = {"model": model, "pictures": pictures, "masks": masks, "training": training}
    resolve_model(model)
    from noiseworks.maskunet.data import load_examples, read_metadata

    read_metadata(pictures.data)
    from noiseworks.core.devices import resolve_device
    from noiseworks.kits.diffusers_hosts.loading import load_pipeline
    from noiseworks.kits.training import check_run, open_run
    from noiseworks.maskunet.masking import MaskNet
    from noiseworks.maskunet.training import train_masks, trainable_count

    check_run(out, settings)
    pipe = load_pipeline(model, resolve_device(training.device), families=TUNABLE)
    examples = load_examples(pipe, pictures, training.flip)
    examples.batches(training.batch_size, training.seed)
    MaskNet.of(pipe, masks)  # refuses targets that the pipeline does not have
    with open_run(out, settings) as run:
        net = train_masks(pipe, examples, masks, training, run)
        net.save_pretrained(out / "masks")
    return {"masks": str(out / "masks"), "steps": training.max_steps, "parameters": trainable_count(net)}


def generate(
    *,
    drawing: Spread[Drawing],
    masks: Path,
    out: Path,
    use: Spread[Use] = Use(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw prompts with trained masks.

    Args:
        drawing: What is drawn, and from which model.
        masks: Folder that train wrote.
        out: Folder for the images and config.yaml.
        use: How masks are used.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The number of images, and the share of weights that were off.
    """
    texts = drawing.begin(out, IMAGES, masks)
    from noiseworks.kits.diffusers_hosts.drawing import draw_into, load_for, write_config
    from noiseworks.maskunet.masking import MaskNet, Recorder

    net = MaskNet.from_pretrained(masks)
    pipe, prompts = load_for(drawing, texts, hardware, FAMILIES)
    with (
        net.to(pipe.device).attach(pipe, stochastic=use.stochastic, seed=use.mask_seed) as handle,
        atomic_directory(out, IMAGES) as folder,
    ):
        handle.recorder = Recorder()
        count = draw_into(folder, pipe, prompts, sampling)
        write_config(folder, IMAGES, drawing=drawing, masks=masks, use=use, sampling=sampling)
    off = [value for values in handle.recorder.sparsity.values() for value in values]
    return {"images": count, "off": sum(off) / len(off)}


def optimise(
    *,
    drawing: Spread[Drawing],
    out: Path,
    scorers: Spread[Scorers] = Scorers(),
    schedule: Spread[RewardSchedule] = RewardSchedule(),
    sampling: Spread[Sampling] = Sampling(num_inference_steps=15),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw prompts with masks that are optimised for each image, without training.

    Args:
        drawing: What is drawn, and from which model.
        out: Folder for the images and config.yaml.
        scorers: What images are optimised for.
        schedule: How.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The number of images, network calls an image, and the mean reward at the end of the first and the last step.
    """
    texts = drawing.begin(out, IMAGES)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, progress_bar, write_config
    from noiseworks.kits.pictures import to_pixels, write_picture
    from noiseworks.maskunet.optimising import optimise_masks
    from noiseworks.maskunet.rewarding import load_scorers

    weighted = load_scorers(scorers)
    pipe, prompts = load_for(drawing, texts, hardware, FAMILIES)
    with atomic_directory(out, IMAGES) as folder:
        with progress_bar("optimising") as progress:
            found = optimise_masks(pipe, prompts, weighted, schedule, sampling, progress)
        for number, pixels in enumerate(to_pixels(found.images)):
            write_picture(pixels, folder / f"{number:04d}.png")
        write_config(folder, IMAGES, drawing=drawing, scorers=scorers, schedule=schedule, sampling=sampling)
    ends = [float(found.rewards[k][-1].mean()) for k in (0, -1)]
    return {"images": len(prompts), "calls": found.calls, "first reward": ends[0], "last reward": ends[1]}


def random(
    *,
    drawing: Spread[Drawing],
    out: Path,
    masks: Spread[RandomMasks] = RandomMasks(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw prompts with random masks: the paper's motivating experiment.

    Args:
        drawing: What is drawn, and from which model.
        out: Folder for the images and config.yaml.
        masks: Which weights go, and when.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The number of images.
    """
    texts = drawing.begin(out, IMAGES)
    from noiseworks.kits.diffusers_hosts.drawing import draw_into, load_for, write_config
    from noiseworks.maskunet.random_masks import attach_random

    pipe, prompts = load_for(drawing, texts, hardware, FAMILIES)
    with attach_random(pipe, masks), atomic_directory(out, IMAGES) as folder:
        count = draw_into(folder, pipe, prompts, sampling)
        write_config(folder, IMAGES, drawing=drawing, masks=masks, sampling=sampling)
    return {"images": count}


def compare(
    *,
    drawing: Spread[Drawing],
    out: Path,
    compared: Spread[Compared] = Compared(),
    schedule: Spread[RewardSchedule] = RewardSchedule(),
    sampling: Spread[Sampling] = Sampling(num_inference_steps=15),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Try it on your own model: optimised masks beside plain drawing, random masks and best of n at equal calls.

    Args:
        drawing: What is drawn, and from which model.
        out: Folder for `comparison.csv`, `images.png` (a row of images a way) and `config.yaml`.
        compared: What is compared.
        schedule: Of the optimised masks.
        sampling: How images are drawn, from the same noise.
        hardware: Where the model runs.

    Returns:
        A row a way: network calls an image, mean reward, seconds an image, and peak MiB of one step of one image.
    """
    texts = drawing.begin(out, COMPARISON, compared.masks)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, write_config, write_rows
    from noiseworks.maskunet.comparing import contest, write_images
    from noiseworks.maskunet.rewarding import load_scorers

    weighted = load_scorers(compared)
    pipe, prompts = load_for(drawing, texts, hardware, FAMILIES)
    with atomic_directory(out, COMPARISON) as folder:
        rows, images = contest(pipe, prompts, weighted, compared, schedule, sampling)
        write_images(images, folder / "images.png")
        write_rows(folder / "comparison.csv", tuple(rows[0]), (row.values() for row in rows))
        write_config(folder, COMPARISON, drawing=drawing, compared=compared, schedule=schedule)
    return {"ways": rows}


def inspect(*, masks: Path) -> dict[str, Any]:
    """Show what trained masks are of: configuration, blocks, layers and numbers.

    Args:
        masks: Folder that train wrote.

    Returns:
        The configuration, the fingerprint of the host's weights, and layers and numbers of each block.
    """
    from noiseworks.maskunet.masking import MaskNet
    from noiseworks.maskunet.training import trainable_count

    net = MaskNet.from_pretrained(masks)
    blocks = {
        path: {"layers": len(one.layers), "parameters": trainable_count(net.block(path))}
        for path, one in net.shapes.items()
    }
    return {"config": vars(net.config), "fingerprint": net.fingerprint, "blocks": blocks}


def bench(*, bench: Spread[Bench] = Bench(), model: str | None = None) -> dict[str, Any]:
    """Time the fused path and count its memory, beside the released way.

    Args:
        bench: What it is timed on.
        model: A pipeline of Stable Diffusion 1 whose whole step is timed as well.

    Returns:
        Seconds and peak MiB, naive and fused, of inference and training, and their ratios.
    """
    if model is not None:
        resolve_model(model)
    from noiseworks.kits.diffusers_hosts.loading import load_pipeline
    from noiseworks.maskunet.benchmarking import bench_block, bench_step

    found = {name: bench_block(bench, training=name == "training") for name in ("inference", "training")}
    if model is not None:
        pipe = load_pipeline(model, families=("sd",))
        found |= {
            f"whole step, {name}": bench_step(pipe, bench, training=name == "training")
            for name in ("inference", "training")
        }
    return found
