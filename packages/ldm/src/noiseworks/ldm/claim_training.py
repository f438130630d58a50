"""How the claim's arms train: their networks, what they train on, scores along the time, and what ships of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.core.timing import work_clock
from noiseworks.kits.training import Batches, TensorTable
from noiseworks.ldm.claim import SPACES, Shared, Space
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import make_scheduler, run_unet
from noiseworks.ldm.diffusion.samplers import sample_latents
from noiseworks.ldm.diffusion.scaling import posterior
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
from noiseworks.ldm.evidence import (
    TRAINING_SEED,
    attribute_numbers,
    oracle_scores,
    rendered,
    single_scenes,
)
from noiseworks.ldm.options import SampleSettings
from torch import Tensor, nn

STEPS = 20
LEARNING_RATE = 2e-3
PREDICTION_TYPE = "sample"  # x0: the pixel model learns too little in minutes when it predicts ε


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


def make_networks(space: Space, values: Sequence[int], seed: int) -> tuple[nn.Module, AttributeConditioner]:
    """Return the untrained U-Net and conditioner of an arm.

    Args:
        space: The arm's.
        values: Numbers of values of the attributes.
        seed: Of the weights.
    """
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
        return unet, AttributeConditioner(values, 4 * space.widths[0])


def state_of(model: LatentModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what rebuilds an arm's model besides its architecture: settings and tensors."""
    networks = nn.ModuleDict({"unet": model.unet, "conditioner": model.conditioner})
    settings = {
        "scale_factor": model.scale_factor,
        "prediction_type": model.scheduler.config.prediction_type,
    }
    return settings, networks.state_dict()


def rebuilt(
    arm: str,
    values: Sequence[int],
    vae: nn.Module | None,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> LatentModel:
    """Return the model of an arm from what `state_of` returned."""
    unet, conditioner = make_networks(SPACES[arm], values, 0)
    networks = nn.ModuleDict({"unet": unet, "conditioner": conditioner}).eval().requires_grad_(False)
    networks.load_state_dict(tensors)
    schedule = make_scheduler(prediction_type=config["prediction_type"])
    return LatentModel(unet, vae, schedule, conditioner, config["scale_factor"])


def training_table(
    count: int, values: Sequence[Sequence[str]], vae: nn.Module | None
) -> tuple[TensorTable, float]:
    """Return what an arm trains on: pixels, or a first stage's posteriors, and the CPU seconds of encoding."""
    scenes = single_scenes(count, TRAINING_SEED, "train")
    images, attributes = rendered(scenes), attribute_numbers(scenes, values)
    if vae is None:
        return TensorTable({"latents": images, "attributes": attributes}), 0.0
    start = time.process_time()
    encoded = [posterior(vae, part) for part in images.split(250)]
    mean, logvar = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    seconds = time.process_time() - start
    return TensorTable({"mean": mean, "logvar": logvar, "attributes": attributes}), seconds


def sample(model: LatentModel, space: Space, shared: Shared) -> Tensor:
    """Return samples [n, 3, 32, 32] for the attributes of the scenes, with 20 steps of DDIM and no guidance."""
    device = next(model.unet.parameters()).device
    with torch.no_grad():
        numbers = attribute_numbers(shared.held, shared.values).to(device)
        condition = model.conditioner({"attributes": numbers})
        latents = sample_latents(
            model,
            lambda noisy, timestep: run_unet(model.unet, noisy, timestep, condition),
            (space.channels, space.side, space.side),
            SampleSettings(num_inference_steps=STEPS, seed=shared.seed),
            sample_ids=range(len(shared.held)),
        )
        return latents / model.scale_factor if model.vae is None else model.decode(latents)


def train_arm(arm: str, shared: Shared, sizes: Mapping[str, Any], device: str) -> Trained:
    """Train one arm for a number of seconds and score it along the way; kept for the other arm."""
    if arm in shared.trained:
        return shared.trained[arm]
    space, vae = SPACES[arm], shared.first_stages[arm]
    unet, conditioner = make_networks(space, [len(column) for column in shared.values], shared.seed)
    trainer = LatentDiffusionTrainer(
        unet,
        None,
        conditioner,
        make_scheduler(prediction_type=PREDICTION_TYPE),
        learning_rate=LEARNING_RATE,
        ema_decay=0.99,
        warmup_steps=20,
        seed=shared.seed,
    )

    def model() -> LatentModel:
        decoder = None if vae is None else vae.to(trainer.device)
        scale = float(trainer.scale_factor)
        return LatentModel(trainer.ema["unet"], decoder, trainer.scheduler, trainer.ema["conditioner"], scale)

    def score() -> tuple[np.ndarray, Tensor]:
        images = sample(model(), space, shared)
        return oracle_scores(images, shared.held), images

    table, used = training_table(sizes["scenes"], shared.values, vae)
    timed = TimedScores([share * sizes["seconds"] for share in space.marks], score, used)
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
    ).fit(trainer, Batches(table, space.batch_size, seed=shared.seed))
    marks = tuple(timed.seconds), tuple(timed.scores)
    shared.trained[arm] = Trained(model(), used, *marks, timed.final, timed.images, timed.steps)
    return shared.trained[arm]


def size_note(arm: str, model: LatentModel, steps: int) -> str:
    """Return a sentence on an arm's size."""
    count = sum(parameter.numel() for parameter in model.unet.parameters())
    return f"{arm}: U-Net of {count / 1e6:.2f} M parameters, {steps} steps of {SPACES[arm].batch_size} rows"


class TimedScores(L.Callback):
    """Score the averaged model when the training time reaches each mark, and stop at the last one.

    Time is the process's CPU time (on a GPU: wall-clock time), so that other work on the machine does not
    count; scoring is left out.

    Args:
        marks: Seconds, rising.
        score: Called at each mark, returns the scores and the samples.
        used: Seconds that preparing the training data took, which count.
    """

    def __init__(
        self,
        marks: Sequence[float],
        score: Callable[[], tuple[np.ndarray, Tensor]],
        used: float = 0.0,
    ) -> None:
        self.marks, self.score = list(marks), score
        self.clock = work_clock("cpu")
        self.elapsed, self.last, self.steps = used, 0.0, 0
        self.seconds: list[float] = []
        self.scores: list[float] = []
        self.final: np.ndarray | None = None
        self.images: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.clock = work_clock(pl_module.device)
        self.last = self.clock()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stop the clock, score if a mark is reached, go on."""
        self.elapsed += self.clock() - self.last
        self.steps += 1
        if self.elapsed >= self.marks[len(self.seconds)]:
            self.final, self.images = self.score()
            self.seconds.append(self.elapsed)
            self.scores.append(float(self.final.mean()))
            trainer.should_stop = len(self.seconds) == len(self.marks)
        self.last = self.clock()


def seconds_to_reach(
    score: float, seconds: Sequence[float], scores: Sequence[float], start: float = 0.0
) -> float:
    """Return when a curve reaches a score, linear from (start, 0) through its points; its last time if never."""
    before_time, before = start, 0.0
    for moment, value in zip(seconds, scores, strict=True):
        if value >= score:
            share = (score - before) / (value - before) if value > before else 1.0
            return before_time + max(share, 0.0) * (moment - before_time)
        before_time, before = moment, value
    return seconds[-1]
