"""The claim: an f = 4 latent reaches the score of pixel diffusion in at most a third of its training time.

Two U-Nets of about the same number of parameters are trained from scratch on scenes with one object, given
their attributes, for the same time: one on pixels (f = 1), one on the latents of the shipped f = 4 first
stage. Along the way the oracle reads the requested attributes from samples of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, bench
from noiseworks.bench.testbeds import shapes
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.ldm.conditioning import Condition, Conditioner
from noiseworks.ldm.data import to_tensor, to_uint8
from noiseworks.ldm.diffusion import LatentDiffusionTrainer
from noiseworks.ldm.evaluation import reconstruct
from noiseworks.ldm.loader import ResumableLoader, TensorTable
from noiseworks.ldm.model import LatentModel, load_first_stage
from noiseworks.ldm.objective import make_scheduler, run_unet
from noiseworks.ldm.samplers import SampleSettings, sample_latents
from noiseworks.ldm.scaling import posterior
from noiseworks.ldm.timing import TimedScores, seconds_to_reach
from torch import Tensor, nn

FIRST_STAGE = "testbed:shapes-vae"
SMALLEST_CEILING = 0.9
SMALLEST_PIXEL_SCORE = (
    0.05  # nothing is right where no object is found, so a model that learned nothing has 0
)
SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_KIND = "ldm/claim"
IMAGE_SIZE = 32
STEPS = 20
TRAINING_SEED = 1  # of the scenes; the claim's seed draws weights, order, noise and evaluation prompts


@dataclass(frozen=True)
class Space:
    """Where an arm's diffusion runs, and its U-Net and training settings, chosen on seed 0.

    Attributes:
        channels: Channels of what is diffused.
        side: Its height and width.
        widths: Channels of the U-Net's levels; attention on the last one.
        batch_size: Rows a step.
        marks: Shares of the training time at which samples are scored.
    """

    channels: int
    side: int
    widths: tuple[int, ...]
    batch_size: int
    marks: tuple[float, ...]


SPACES = {
    "pixels": Space(3, 32, (16, 32, 48), 16, (1 / 3, 2 / 3, 1.0)),
    "latent": Space(4, 8, (32, 48), 32, (1 / 24, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1.0)),
}
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Trained:
    """What training one arm gave.

    Attributes:
        model: The averaged model; its `vae` is None for pixels.
        seconds: Training time at each mark.
        scores: Mean score at each mark.
        final: Score of each prompt at the last mark.
        images: Samples at the last mark, [n, 3, 32, 32] in [-1, 1].
        steps: Optimiser steps.
    """

    model: LatentModel
    seconds: tuple[float, ...]
    scores: tuple[float, ...]
    final: np.ndarray
    images: Tensor
    steps: int


class AttributeConditioner(Conditioner):
    """One learned vector a value of each attribute; their sum joins the time embedding.

    Args:
        values: Numbers of values of the attributes.
        dim: Width of the U-Net's time embedding.
    """

    kind = "adm"

    def __init__(self, values: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in values)

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the sum of the vectors of `attributes`, int64 [B, 5]; there is no null condition."""
        columns = batch["attributes"].unbind(dim=1)
        return Condition(adm=sum(table(column) for table, column in zip(self.tables, columns, strict=True)))


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


def oracle_scores(images: Tensor, scenes: Sequence[shapes.Scene]) -> np.ndarray:
    """Return the share of attributes the oracle finds right in images [n, 3, 32, 32] in [-1, 1]."""
    return shapes.score(((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy(), scenes)


@cache
def first_stage(name: str) -> nn.Module:
    """Return the first stage, loaded once a process."""
    return load_first_stage(name)


@cache
def training_table(arm: str, count: int, first_stage_name: str) -> TensorTable:
    """Return what an arm trains on: pixels, or posteriors encoded once."""
    scenes = single_scenes(count, TRAINING_SEED, "train")
    images, attributes = to_tensor(shapes.render(scenes)), attribute_numbers(scenes)
    if arm == "pixels":
        return TensorTable({"latents": images, "attributes": attributes})
    vae = first_stage(first_stage_name)
    encoded = [posterior(vae, part) for part in images.split(250)]
    mean, logvar = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    return TensorTable({"mean": mean, "logvar": logvar, "attributes": attributes})


# --- Training and sampling ---


def make_networks(space: Space, seed: int) -> tuple[nn.Module, AttributeConditioner]:
    """Return the untrained U-Net and conditioner of an arm."""
    from diffusers import UNet2DModel

    lower = len(space.widths) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=space.side,
            in_channels=space.channels,
            out_channels=space.channels,
            block_out_channels=space.widths,
            down_block_types=("DownBlock2D",) * lower + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lower,
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
            class_embed_type="identity",
        )
        values = [len(column) for column in attribute_values()]
        return unet, AttributeConditioner(values, 4 * space.widths[0])


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
    arm: str, seed: int, seconds: float, scenes: int, prompts: int, name: str, device: str
) -> Trained:
    """Train one arm for a number of seconds and score it along the way; computed once a process.

    Args:
        arm: A key of `SPACES`.
        seed: Of weights, order, noise and evaluation prompts.
        seconds: Training time.
        scenes: Training scenes.
        prompts: Evaluation prompts.
        name: The first stage.
        device: Where to train.
    """
    space, held = SPACES[arm], single_scenes(prompts, seed, "test")
    unet, conditioner = make_networks(space, seed)
    trainer = LatentDiffusionTrainer(
        unet, None, conditioner, learning_rate=LEARNING_RATE, ema_decay=0.99, warmup_steps=20, seed=seed
    )

    def model() -> LatentModel:
        vae = None if arm == "pixels" else first_stage(name).to(trainer.device)
        scale = float(trainer.scale_factor)
        return LatentModel(trainer.ema["unet"], vae, trainer.scheduler, trainer.ema["conditioner"], scale)

    def score() -> tuple[np.ndarray, Tensor]:
        images = sample(model(), space, held, seed)
        return oracle_scores(images, held), images

    timed = TimedScores([share * seconds for share in space.marks], score)
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
    ).fit(trainer, ResumableLoader(training_table(arm, scenes, name), space.batch_size, seed=seed))
    return Trained(model(), tuple(timed.seconds), tuple(timed.scores), timed.final, timed.images, timed.steps)


# --- Measuring ---


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm: train it, or (at the quick scale) sample from the model of the last laptop run."""
    settings, name = context.settings, context.model or FIRST_STAGE
    prompts = settings["prompts"]
    ceiling = {}
    if arm == "latent":
        ceiling = {"ceiling": reconstruction_scores(name, prompts, seed)}
    if context.scale == "quick":
        return shipped_measurement(arm, seed, prompts, name, ceiling)
    arguments = (seed, settings["seconds"], settings["scenes"], prompts, name, context.device)
    context.progress(0, 1, f"training {arm} for {settings['seconds']:g} s")
    pixels = train_arm("pixels", *arguments)
    trained = train_arm(arm, *arguments)
    reached = seconds_to_reach(pixels.scores[-1], trained.seconds, trained.scores)
    if arm == "pixels":
        reached = trained.seconds[-1]
    save_trained(context.folder / arm, trained, reached, seed)
    return Measurement(
        metrics={"score": trained.final.tolist(), "seconds": reached} | ceiling,
        series={"score over training seconds": (trained.seconds, trained.scores)},
        images={"samples after the whole time": _grid(trained.images, context.folder / f"{arm}.png")},
        notes=[_size_note(arm, trained.model, trained.steps), _REACH_NOTE],
    )


_REACH_NOTE = (
    "seconds: CPU time of training until the mean score first reaches the pixel arm's final one, linear "
    "between marks; training the first stage, which is shared between models, is not counted"
)


def _size_note(arm: str, model: LatentModel, steps: int) -> str:
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    return f"{arm}: U-Net of {count / 1e6:.2f} M parameters, {steps} steps of {SPACES[arm].batch_size} rows"


def reconstruction_scores(name: str, prompts: int, seed: int) -> list[float]:
    """Return the oracle's scores of test scenes after the first stage: what latent diffusion can reach."""
    scenes = single_scenes(prompts, seed, "test")
    made, _ = reconstruct(first_stage(name), to_tensor(shapes.render(scenes)))
    return oracle_scores(made, scenes).tolist()


def save_trained(folder: Path, trained: Trained, reached: float, seed: int) -> None:
    """Write an arm's model in float16 with its curve."""
    config = {"seconds": trained.seconds, "scores": trained.scores, "reached": reached, "seed": seed}
    config |= {"scale_factor": trained.model.scale_factor, "steps": trained.steps}
    networks = nn.ModuleDict({"unet": trained.model.unet, "conditioner": trained.model.conditioner})
    save_artifact(folder, SHIPPED_KIND, config, {key: t.half() for key, t in networks.state_dict().items()})


def load_shipped(arm: str, folder: Path = SHIPPED) -> tuple[LatentModel, dict[str, Any]]:
    """Return a shipped model (without first stage) and its record: curve, seed, time to the pixel score."""
    config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
    unet, conditioner = make_networks(SPACES[arm], 0)
    networks = nn.ModuleDict({"unet": unet, "conditioner": conditioner}).eval().requires_grad_(False)
    networks.load_state_dict(tensors)
    return LatentModel(unet, None, make_scheduler(), conditioner, config["scale_factor"]), config


def shipped_measurement(
    arm: str, seed: int, prompts: int, name: str, ceiling: Mapping[str, Any]
) -> Measurement:
    """Measure a shipped model on this seed's prompts; the time is the one recorded when it was trained."""
    model, config = load_shipped(arm)
    if arm == "latent":
        model = replace(model, vae=first_stage(name))
    scenes = single_scenes(prompts, seed, "test")
    scores = oracle_scores(sample(model, SPACES[arm], scenes, seed), scenes)
    note = f"model and seconds are those that were trained with seed {config['seed']}; the samples are new"
    return Measurement(
        metrics={"score": scores.tolist(), "seconds": config["reached"], **ceiling},
        series={"score over training seconds": (config["seconds"], config["scores"])},
        notes=[_size_note(arm, model, config["steps"]), note, _REACH_NOTE],
    )


def ship_models(folder: Path, target: Path = SHIPPED) -> None:
    """Copy the two models of one seed's laptop folder to the package, for the quick scale.

    Args:
        folder: The folder of a finished (claim, seed), which holds `pixels` and `latent`.
        target: Where the package keeps them.
    """
    for arm in SPACES:
        config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
        save_artifact(target / arm, SHIPPED_KIND, config, tensors)


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
    if pixels < SMALLEST_PIXEL_SCORE:
        return f"pixel diffusion learned too little to compare with: its score is {pixels:.0%}"
    return None


CLAIM = Claim(
    method="ldm",
    paper="High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv 2112.10752",
    statement=(
        "With equal compute, diffusion in an f = 4 latent reaches the sample quality of pixel diffusion in "
        "at most a third of its training time (figure 6 of the paper: LDM-4 to LDM-8 train fastest)."
    ),
    testbed="shapes",
    arms=(
        Arm("pixels", "pixel diffusion, f = 1", "baseline"),
        Arm("latent", "latent diffusion, f = 4", "method"),
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
        "laptop": Scale((1000, 1001), 1800, {"seconds": 280.0, "scenes": 6000, "prompts": 96}),
    },
    run=run_arm,
    units="prompt",
    columns={
        "seconds": "seconds to the pixel score",
        "score": "attributes right",
        "ceiling": "after first stage",
    },
    precondition=precondition,
)


def run_claim(*, scale: ScaleName = "quick", out: Path = DEFAULT_OUT, jobs: int | None = None) -> BenchResult:
    """Run the paper's claim: f = 4 against pixels, at equal time.

    Args:
        scale: smoke, quick (shipped models) or laptop (trains from scratch, about 12 minutes on two cores).
        out: Folder of results and report.
        jobs: Processes at a time.
    """
    return bench(methods=["ldm"], scale=scale, out=out, jobs=jobs)
