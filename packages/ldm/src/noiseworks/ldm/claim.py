"""The claim: an f = 4 latent reaches the score of pixel diffusion in at most a third of its training time.

Two U-Nets of about the same number of parameters are trained from scratch on scenes with one object, given
their attributes, for the same time: one on pixels (f = 1), one on the latents of the shipped f = 4 first
stage. Along the way the oracle reads the requested attributes from samples of both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, bench
from noiseworks.bench.testbeds import shapes
from noiseworks.ldm.claim_arms import (
    SPACES,
    Space,
    load_model,
    make_networks,
    save_model,
    scheduler,
    ship_models,
)
from noiseworks.ldm.data import to_tensor, to_uint8
from noiseworks.ldm.diffusion import LatentDiffusionTrainer
from noiseworks.ldm.evaluation import reconstruct
from noiseworks.ldm.loader import ResumableLoader, TensorTable
from noiseworks.ldm.model import LatentModel, load_first_stage
from noiseworks.ldm.objective import run_unet
from noiseworks.ldm.samplers import SampleSettings, sample_latents
from noiseworks.ldm.scaling import posterior
from noiseworks.ldm.timing import TimedScores, seconds_to_reach
from torch import Tensor, nn

__all__ = ["CLAIM", "run_arm", "run_claim", "ship_models"]

SMALLEST_CEILING = 0.9
SMALLEST_PIXEL_SCORE = 0.4  # what scenes score that were drawn without a look at the request
STEPS = 20
LEARNING_RATE = 2e-3
TRAINING_SEED = 1  # of the scenes; the claim's seed draws weights, order, noise and evaluation prompts


@dataclass(frozen=True)
class Trained:
    """What training one arm gave.

    Attributes:
        model: The averaged model; its `vae` is None for pixels.
        encoding: Seconds that encoding the training images took, 0 for pixels.
        seconds: Training time at each mark.
        scores: Mean score at each mark.
        final: Score of each prompt at the last mark.
        images: Samples at the last mark, [n, 3, 32, 32] in [-1, 1].
        steps: Optimiser steps.
    """

    model: LatentModel
    encoding: float
    seconds: tuple[float, ...]
    scores: tuple[float, ...]
    final: np.ndarray
    images: Tensor
    steps: int


# --- Scenes ---


def single_scenes(count: int, seed: int, split: str) -> list[shapes.Scene]:
    """Return the first `count` scenes with one object."""
    drawn = 2 * count + 64
    scenes = [scene for scene in shapes.sample_scenes(drawn, seed, split) if scene.kind == "single"]
    return scenes[:count]


def attribute_names(scene: shapes.Scene) -> tuple[str, ...]:
    """Return what is asked for: shape, colour, size, position, background."""
    item = scene.objects[0]
    return item.shape, item.color, scene.size, scene.position, scene.background


@cache
def attribute_values() -> tuple[tuple[str, ...], ...]:
    """Return the values of each attribute, sorted."""
    names = [attribute_names(scene) for scene in single_scenes(1000, TRAINING_SEED, "train")]
    return tuple(tuple(sorted(set(column))) for column in zip(*names, strict=True))


def attribute_numbers(scenes: Sequence[shapes.Scene]) -> Tensor:
    """Return the attributes of scenes as int64 [n, 5]."""
    values = attribute_values()
    rows = [
        [v.index(name) for v, name in zip(values, attribute_names(scene), strict=True)] for scene in scenes
    ]
    return torch.tensor(rows)


def attribute_counts() -> list[int]:
    """Return the number of values of each attribute."""
    return [len(column) for column in attribute_values()]


def oracle_scores(images: Tensor, scenes: Sequence[shapes.Scene]) -> np.ndarray:
    """Return the share of attributes the oracle finds right in images [n, 3, 32, 32] in [-1, 1]."""
    return shapes.score(((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy(), scenes)


@cache
def first_stage(name: str | None) -> nn.Module | None:
    """Return a first stage, loaded once a process; None for pixels."""
    return None if name is None else load_first_stage(name)


def first_stage_name(arm: str, model: str | None) -> str | None:
    """Return the first stage of an arm, the user's where one was named; None for pixels."""
    shipped = SPACES[arm].first_stage
    return None if shipped is None else model or shipped


@cache
def training_table(count: int, name: str | None) -> tuple[TensorTable, float]:
    """Return what an arm trains on: pixels, or a first stage's posteriors, and the CPU seconds of encoding."""
    scenes = single_scenes(count, TRAINING_SEED, "train")
    images, attributes = to_tensor(shapes.render(scenes)), attribute_numbers(scenes)
    vae = first_stage(name)
    if vae is None:
        return TensorTable({"latents": images, "attributes": attributes}), 0.0
    start = time.process_time()
    encoded = [posterior(vae, part) for part in images.split(250)]
    mean, logvar = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    seconds = time.process_time() - start
    return TensorTable({"mean": mean, "logvar": logvar, "attributes": attributes}), seconds


# --- Training and sampling ---


@torch.no_grad()
def sample(model: LatentModel, space: Space, scenes: Sequence[shapes.Scene], seed: int) -> Tensor:
    """Return samples [n, 3, 32, 32] for the attributes of scenes, with 20 steps of DDIM and no guidance."""
    device = next(model.unet.parameters()).device
    condition = model.conditioner({"attributes": attribute_numbers(scenes).to(device)})
    latents = sample_latents(
        model,
        lambda noisy, timestep: run_unet(model.unet, noisy, timestep, condition),
        (space.channels, space.side, space.side),
        SampleSettings(num_inference_steps=STEPS),
        seed=seed,
        sample_ids=range(len(scenes)),
    )
    return latents / model.scale_factor if model.vae is None else model.decode(latents)


@cache
def train_arm(
    arm: str, seed: int, seconds: float, scenes: int, prompts: int, name: str | None, device: str
) -> Trained:
    """Train one arm for a number of seconds and score it along the way; computed once a process.

    Args:
        arm: A key of `SPACES`.
        seed: Of weights, order, noise and evaluation prompts.
        seconds: Training time.
        scenes: Training scenes.
        prompts: Evaluation prompts.
        name: The first stage; None for pixels.
        device: Where to train.
    """
    space, held, vae = SPACES[arm], single_scenes(prompts, seed, "test"), first_stage(name)
    unet, conditioner = make_networks(space, attribute_counts(), seed)
    trainer = LatentDiffusionTrainer(
        unet,
        None,
        conditioner,
        scheduler(),
        learning_rate=LEARNING_RATE,
        ema_decay=0.99,
        warmup_steps=20,
        seed=seed,
    )

    def model() -> LatentModel:
        decoder = None if vae is None else vae.to(trainer.device)
        scale = float(trainer.scale_factor)
        return LatentModel(trainer.ema["unet"], decoder, trainer.scheduler, trainer.ema["conditioner"], scale)

    def score() -> tuple[np.ndarray, Tensor]:
        images = sample(model(), space, held, seed)
        return oracle_scores(images, held), images

    table, used = training_table(scenes, name)
    timed = TimedScores([share * seconds for share in space.marks], score, used)
    L.Trainer(
        max_epochs=-1,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[timed],
    ).fit(trainer, ResumableLoader(table, space.batch_size, seed=seed))
    return Trained(
        model(), used, tuple(timed.seconds), tuple(timed.scores), timed.final, timed.images, timed.steps
    )


# --- Measuring ---


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm: train it, or (at the quick scale) sample from the model of the last laptop run."""
    settings, name = context.settings, first_stage_name(arm, context.model)
    prompts = settings["prompts"]
    ceiling = {"ceiling": reconstruction_scores(name, prompts, seed)}
    if context.scale == "quick":
        return shipped_measurement(arm, seed, prompts, name, ceiling)
    arguments = (seed, settings["seconds"], settings["scenes"], prompts)
    context.progress(list(SPACES).index(arm), len(SPACES), f"training {arm} for {settings['seconds']:g} s")
    pixels = train_arm("pixels", *arguments, None, context.device)
    trained = train_arm(arm, *arguments, name, context.device)
    reached = pixels.seconds[-1]
    if arm != "pixels":
        reached = seconds_to_reach(pixels.scores[-1], trained.seconds, trained.scores, trained.encoding)
    record = {"seconds": trained.seconds, "scores": trained.scores, "reached": reached}
    save_model(context.folder / arm, trained.model, record | {"steps": trained.steps, "seed": seed})
    return Measurement(
        metrics={"score": trained.final.tolist(), "seconds": reached} | ceiling,
        series={"score over training seconds": (trained.seconds, trained.scores)},
        images={"samples after the whole time": _grid(trained.images, context.folder / f"{arm}.png")},
        notes=[_size_note(arm, trained.model, trained.steps), _REACH_NOTE],
    )


_REACH_NOTE = (
    "seconds: CPU time of training until the mean score first reaches the pixel arm's final one, linear "
    "between marks (the whole time when it never does); encoding the training images once is counted, training "
    "the first stage, which is shared between models, is not"
)


def _size_note(arm: str, model: LatentModel, steps: int) -> str:
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    return f"{arm}: U-Net of {count / 1e6:.2f} M parameters, {steps} steps of {SPACES[arm].batch_size} rows"


def reconstruction_scores(name: str | None, prompts: int, seed: int) -> list[float]:
    """Return the oracle's scores of test scenes after the first stage: what an arm can reach."""
    scenes = single_scenes(prompts, seed, "test")
    images, vae = to_tensor(shapes.render(scenes)), first_stage(name)
    return oracle_scores(images if vae is None else reconstruct(vae, images)[0], scenes).tolist()


def shipped_measurement(
    arm: str, seed: int, prompts: int, name: str | None, ceiling: Mapping[str, Sequence[float]]
) -> Measurement:
    """Measure a shipped model on this seed's prompts; the time is the one recorded when it was trained."""
    model, config = load_model(arm, attribute_counts(), first_stage(name))
    scenes = single_scenes(prompts, seed, "test")
    scores = oracle_scores(sample(model, SPACES[arm], scenes, seed), scenes)
    note = f"model and seconds are those that were trained with seed {config['seed']}; the samples are new"
    return Measurement(
        metrics={"score": scores.tolist(), "seconds": config["reached"], **ceiling},
        series={"score over training seconds": (config["seconds"], config["scores"])},
        notes=[_size_note(arm, model, config["steps"]), note, _REACH_NOTE],
    )


def _grid(images: Tensor, path: Path, columns: int = 12) -> Path:
    from PIL import Image

    tiles = to_uint8(images[: 2 * columns])
    columns = min(columns, len(tiles))
    whole = tiles[: len(tiles) // columns * columns].reshape(-1, columns, *tiles.shape[1:])
    Image.fromarray(np.concatenate(np.concatenate(whole, axis=1), axis=1)).save(path)
    return path


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: a bad first stage, or a pixel model that learned nothing."""
    ceiling = np.mean([np.mean(m.metrics["ceiling"]) for m in measurements["latent"]])
    if ceiling < SMALLEST_CEILING:
        return f"the oracle reads {ceiling:.0%} of the attributes after the first stage, 90% are needed"
    pixels = np.mean([np.mean(m.metrics["score"]) for m in measurements["pixels"]])
    if pixels <= SMALLEST_PIXEL_SCORE:
        return (
            f"pixel diffusion learned too little to compare with: its score is {pixels:.0%}, and scenes "
            f"drawn without a look at the request have {SMALLEST_PIXEL_SCORE:.0%}"
        )
    return None


CLAIM = Claim(
    method="ldm",
    paper="High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv 2112.10752",
    statement=(
        "With equal compute, diffusion in an f = 4 latent reaches the sample quality of pixel diffusion in "
        "at most a third of its training time (figure 6 of the paper: LDM-4 to LDM-8 train fastest)."
    ),
    testbed="shapes",
    arms=tuple(
        Arm(name, space.label, "baseline" if space.first_stage is None else "method")
        for name, space in SPACES.items()
    ),
    targets=(
        Target("time to the pixel model's score", "seconds", "latent", "pixels", "ratio", 1 / 3, "lower"),
        Target(
            "score after equal time", "score", "latent", "pixels", "difference", 0.0, "higher", guard=True
        ),
    ),
    scales={
        "smoke": Scale((1000,), 120, {"seconds": 0.5, "scenes": 128, "prompts": 4}),
        "quick": Scale((1000,), 120, {"prompts": 32}),
        "laptop": Scale((1000, 1001, 1002), 1800, {"seconds": 100.0, "scenes": 6000, "prompts": 96}),
    },
    run=run_arm,
    units="prompt",
    columns={
        "seconds": "seconds to the pixel score",
        "score": "attributes right",
        "ceiling": "after first stage",
    },
    precondition=precondition,
    version=2,
)


def run_claim(*, scale: ScaleName = "quick", out: Path = DEFAULT_OUT, jobs: int | None = None) -> BenchResult:
    """Run the paper's claim: f = 4 against pixels, at equal time.

    Args:
        scale: smoke, quick (shipped models) or laptop (trains from scratch, about 8 minutes on two cores).
        out: Folder of results and report.
        jobs: Processes at a time.
    """
    return bench(methods=["ldm"], scale=scale, out=out, jobs=jobs)
