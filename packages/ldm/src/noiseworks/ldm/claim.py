"""The claim: an f = 4 latent reaches the score of pixel diffusion in at most a third of its training time.

Two U-Nets of about the same number of parameters are trained from scratch on scenes with one object, given
their attributes, for the same time: one on pixels (f = 1), one on the latents of the shipped f = 4 first
stage. Along the way the oracle reads the requested attributes from samples of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noiseworks.bench import shipped
from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
)
from noiseworks.ldm.claim_spaces import SPACES, Space

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from noiseworks.bench.testbeds import shapes
    from noiseworks.kits.training import TensorTable
    from noiseworks.ldm.diffusion.model import LatentModel
    from torch import Tensor, nn

PACKAGE = "noiseworks.ldm"
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

    model: "LatentModel"
    encoding: float
    seconds: tuple[float, ...]
    scores: tuple[float, ...]
    final: "np.ndarray"
    images: "Tensor"
    steps: int


@dataclass
class Shared:
    """What the arms of a seed share.

    Attributes:
        seed: Of weights, order, noise and evaluation prompts.
        held: The scenes that are asked for.
        values: The values of each attribute.
        first_stages: Arm -> first stage; None diffuses pixels.
        trained: What arms trained; the latent arm is measured against the pixel arm's last score.
    """

    seed: int
    held: "Sequence[shapes.Scene]"
    values: tuple[tuple[str, ...], ...]
    first_stages: "Mapping[str, nn.Module | None]"
    trained: dict[str, Trained] = field(default_factory=dict)


def prepare(seed: int, context: Context) -> Shared:
    """Draw the scenes that are asked for, and load the first stage: the shipped one, or the user's."""
    from noiseworks.ldm.diffusion.model import load_first_stage

    stages = {
        arm: None if space.first_stage is None else load_first_stage(context.model or space.first_stage)
        for arm, space in SPACES.items()
    }
    return Shared(seed, single_scenes(context.settings["prompts"], seed, "test"), attribute_values(), stages)


# --- Scenes ---


def single_scenes(count: int, seed: int, split: str) -> "list[shapes.Scene]":
    """Return the first `count` scenes with one object."""
    from noiseworks.bench.testbeds import shapes

    drawn = 2 * count + 64
    scenes = [scene for scene in shapes.sample_scenes(drawn, seed, split) if scene.kind == "single"]
    return scenes[:count]


def attribute_names(scene: "shapes.Scene") -> tuple[str, ...]:
    """Return what is asked for: shape, colour, size, position, background."""
    item = scene.objects[0]
    return item.shape, item.color, scene.size, scene.position, scene.background


def attribute_values() -> tuple[tuple[str, ...], ...]:
    """Return the values of each attribute, sorted."""
    names = [attribute_names(scene) for scene in single_scenes(1000, TRAINING_SEED, "train")]
    return tuple(tuple(sorted(set(column))) for column in zip(*names, strict=True))


def attribute_numbers(scenes: "Sequence[shapes.Scene]", values: Sequence[Sequence[str]]) -> "Tensor":
    """Return the attributes of scenes as int64 [n, 5]."""
    import torch

    rows = [
        [v.index(name) for v, name in zip(values, attribute_names(scene), strict=True)] for scene in scenes
    ]
    return torch.tensor(rows)


def oracle_scores(images: "Tensor", scenes: "Sequence[shapes.Scene]") -> "np.ndarray":
    """Return the share of attributes the oracle finds right in images [n, 3, 32, 32] in [-1, 1]."""
    from noiseworks.bench.testbeds import shapes

    return shapes.score(((images.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy(), scenes)


def rendered(scenes: "Sequence[shapes.Scene]") -> "Tensor":
    """Return the images of scenes, [n, 3, 32, 32] in [-1, 1]."""
    from noiseworks.bench.testbeds import shapes
    from noiseworks.ldm.data import to_tensor

    return to_tensor(shapes.render(scenes))


def training_table(
    count: int, values: Sequence[Sequence[str]], vae: "nn.Module | None"
) -> "tuple[TensorTable, float]":
    """Return what an arm trains on: pixels, or a first stage's posteriors, and the CPU seconds of encoding."""
    import time

    import torch
    from noiseworks.kits.training import TensorTable
    from noiseworks.ldm.diffusion.scaling import posterior

    scenes = single_scenes(count, TRAINING_SEED, "train")
    images, attributes = rendered(scenes), attribute_numbers(scenes, values)
    if vae is None:
        return TensorTable({"latents": images, "attributes": attributes}), 0.0
    start = time.process_time()
    encoded = [posterior(vae, part) for part in images.split(250)]
    mean, logvar = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    seconds = time.process_time() - start
    return TensorTable({"mean": mean, "logvar": logvar, "attributes": attributes}), seconds


# --- Training and sampling ---


def sample(model: "LatentModel", space: Space, shared: Shared) -> "Tensor":
    """Return samples [n, 3, 32, 32] for the attributes of the scenes, with 20 steps of DDIM and no guidance."""
    import torch
    from noiseworks.ldm.diffusion.objective import run_unet
    from noiseworks.ldm.diffusion.samplers import SampleSettings, sample_latents

    device = next(model.unet.parameters()).device
    with torch.no_grad():
        numbers = attribute_numbers(shared.held, shared.values).to(device)
        condition = model.conditioner({"attributes": numbers})
        latents = sample_latents(
            model,
            lambda noisy, timestep: run_unet(model.unet, noisy, timestep, condition),
            (space.channels, space.side, space.side),
            SampleSettings(num_inference_steps=STEPS),
            seed=shared.seed,
            sample_ids=range(len(shared.held)),
        )
        return latents / model.scale_factor if model.vae is None else model.decode(latents)


def train_arm(arm: str, shared: Shared, context: Context) -> Trained:
    """Train one arm for a number of seconds and score it along the way; kept for the other arm."""
    if arm in shared.trained:
        return shared.trained[arm]
    import lightning as L
    from noiseworks.kits.training import Batches
    from noiseworks.ldm.claim_arms import make_networks, scheduler
    from noiseworks.ldm.diffusion.model import LatentModel
    from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
    from noiseworks.ldm.timing import TimedScores

    space, vae, sizes = SPACES[arm], shared.first_stages[arm], context.settings
    unet, conditioner = make_networks(space, [len(column) for column in shared.values], shared.seed)
    trainer = LatentDiffusionTrainer(
        unet,
        None,
        conditioner,
        scheduler(),
        learning_rate=LEARNING_RATE,
        ema_decay=0.99,
        warmup_steps=20,
        seed=shared.seed,
    )

    def model() -> LatentModel:
        decoder = None if vae is None else vae.to(trainer.device)
        scale = float(trainer.scale_factor)
        return LatentModel(trainer.ema["unet"], decoder, trainer.scheduler, trainer.ema["conditioner"], scale)

    def score() -> "tuple[np.ndarray, Tensor]":
        images = sample(model(), space, shared)
        return oracle_scores(images, shared.held), images

    table, used = training_table(sizes["scenes"], shared.values, vae)
    timed = TimedScores([share * sizes["seconds"] for share in space.marks], score, used)
    L.Trainer(
        max_epochs=-1,
        accelerator="cpu" if context.device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[timed],
    ).fit(trainer, Batches(table, space.batch_size, seed=shared.seed))
    marks = tuple(timed.seconds), tuple(timed.scores)
    shared.trained[arm] = Trained(model(), used, *marks, timed.final, timed.images, timed.steps)
    return shared.trained[arm]


# --- Measuring ---


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: train it, or (at the quick scale) sample from the model of the last laptop run."""
    from noiseworks.ldm.claim_arms import state_of
    from noiseworks.ldm.timing import seconds_to_reach

    ceiling = {"ceiling": reconstruction_scores(arm, shared)}
    if context.scale == "quick":
        return shipped_measurement(arm, shared, ceiling)
    context.progress(
        list(SPACES).index(arm), len(SPACES), f"training {arm} for {context.settings['seconds']:g} s"
    )
    pixels, trained = train_arm("pixels", shared, context), train_arm(arm, shared, context)
    reached = pixels.seconds[-1]
    if arm != "pixels":
        reached = seconds_to_reach(pixels.scores[-1], trained.seconds, trained.scores, trained.encoding)
    record = {"seconds": trained.seconds, "scores": trained.scores, "reached": reached}
    settings, tensors = state_of(trained.model)
    about = record | settings | {"steps": trained.steps, "seed": shared.seed}
    shipped.save(context.folder, arm, about, tensors)
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


def _size_note(arm: str, model: "LatentModel", steps: int) -> str:
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    return f"{arm}: U-Net of {count / 1e6:.2f} M parameters, {steps} steps of {SPACES[arm].batch_size} rows"


def reconstruction_scores(arm: str, shared: Shared) -> list[float]:
    """Return the oracle's scores of the scenes asked for after the first stage: what an arm can reach."""
    from noiseworks.ldm.first_stage.evaluation import reconstruct

    images, vae = rendered(shared.held), shared.first_stages[arm]
    return oracle_scores(images if vae is None else reconstruct(vae, images)[0], shared.held).tolist()


def shipped_measurement(arm: str, shared: Shared, ceiling: Mapping[str, Sequence[float]]) -> Measurement:
    """Measure a shipped model on this seed's prompts; the time is the one recorded when it was trained."""
    from noiseworks.ldm.claim_arms import rebuilt

    config, tensors = shipped.load(PACKAGE, arm)
    counts = [len(column) for column in shared.values]
    model = rebuilt(arm, counts, shared.first_stages[arm], config, tensors)
    scores = oracle_scores(sample(model, SPACES[arm], shared), shared.held)
    note = f"model and seconds are those that were trained with seed {config['seed']}; the samples are new"
    return Measurement(
        metrics={"score": scores.tolist(), "seconds": config["reached"], **ceiling},
        series={"score over training seconds": (config["seconds"], config["scores"])},
        notes=[_size_note(arm, model, config["steps"]), note, _REACH_NOTE],
    )


def _grid(images: "Tensor", path: "Path", columns: int = 12) -> "Path":
    import numpy as np
    from noiseworks.ldm.data import to_uint8
    from PIL import Image

    tiles = to_uint8(images[: 2 * columns])
    columns = min(columns, len(tiles))
    whole = tiles[: len(tiles) // columns * columns].reshape(-1, columns, *tiles.shape[1:])
    Image.fromarray(np.concatenate(np.concatenate(whole, axis=1), axis=1)).save(path)
    return path


CLAIM = Claim(
    method="ldm",
    paper="High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv 2112.10752",
    statement=(
        "With equal compute, the shared first stage's training not counted, diffusion in an f = 4 latent (batches of "
        "32) reaches the sample quality of pixel diffusion (batches of 8) in at most a third of its training time "
        "(figure 6 of the paper: LDM-4 to LDM-8 train fastest)."
    ),
    testbed="shapes",
    arms=tuple(
        Arm(name, space.label, "baseline" if space.first_stage is None else "method")
        for name, space in SPACES.items()
    ),
    targets=(
        at_most("seconds", "latent", "pixels", ratio=1 / 3, name="time to the pixel model's score"),
        at_least("score", "latent", "pixels", difference=0.0, guard=True, name="score after equal time"),
    ),
    scales={
        "smoke": Scale((500,), 300, {"seconds": 0.5, "scenes": 128, "prompts": 4}),
        "quick": Scale((500,), 120, {"prompts": 32}),
        "laptop": Scale((1000, 1001, 1002), 1800, {"seconds": 100.0, "scenes": 6000, "prompts": 96}),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "latent", "ceiling", 0.9, "the oracle reads only {:.0%} of the attributes after the first stage"
        ),
        Floor(
            "pixels",
            "score",
            SMALLEST_PIXEL_SCORE,
            "pixel diffusion learned too little to compare with: its score is {:.0%}, as of scenes drawn blindly",
        ),
    ),
    units="prompt",
    columns={
        "seconds": "seconds to the pixel score",
        "score": "attributes right",
        "ceiling": "after first stage",
    },
    version=2,
)
