"""Training of `shapes-few`: the shipped U-Net distilled to four re-noising steps, with guidance folded in.

Consistency distillation on the sampler's own timesteps alone. Between two of them the teacher's guided probability flow
is solved by a few DDIM steps, once, when the training set is made; the student learns to predict from the start of such
a segment what its own average predicts from the segment's end, and at the last one the end itself.
Source: Song et al. 2023, arXiv 2303.01469; guided and in latents, Luo et al. 2023, arXiv 2310.04378.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.bench.testbeds.cards import CARD_SEED, Figure, figure
from noiseworks.bench.testbeds.shapes import recipes as shared
from noiseworks.bench.testbeds.shapes.scenes import caption, sample_scenes
from noiseworks.core.models import resolve_model
from noiseworks.core.noise import mix64
from noiseworks.core.params import guide, to_epsilon, to_x0
from noiseworks.core.schedules import Level, expand
from noiseworks.core.steps import ddim_step
from noiseworks.ldm.conditioning.conditioners import Condition, TextConditioner
from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer
from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning as L
    from diffusers import DiffusionPipeline

ROWS, RATE = 8_000, 6e-4
TIMESTEPS = (999, 749, 499, 249)
SUBSTEPS = 3  # of the teacher between two of them
GUIDANCE = 4.0  # of the teacher
HUBER = 0.03  # error of x_0 below which the loss is quadratic
_TEACHER_BATCH = 128


def prepare_segments(captions: str, rows: int | None) -> dict[str, Tensor]:
    """Return starts and ends of segments of the teacher's guided flow, and the ids of clean captions.

    The first segment starts at pure noise, as the sampler does; the others at training images with noise.
    """
    from diffusers import DiffusionPipeline

    teacher = DiffusionPipeline.from_pretrained(resolve_model("testbed:shapes"))
    scenes = sample_scenes(rows or ROWS, shared.TRAIN_SEED)
    table = shared.encode_scenes(scenes)
    generator = torch.Generator().manual_seed(mix64(shared.TRAIN_SEED, 11) >> 1)
    noise = torch.randn(2, *table["mean"].shape, generator=generator)
    latents = (table["mean"] + (0.5 * table["logvar"]).exp() * noise[0]) * teacher.vae.config.scaling_factor
    segment = torch.arange(len(scenes)) % len(TIMESTEPS)
    level = _level(teacher.scheduler.alphas_cumprod, torch.tensor(TIMESTEPS)[segment])
    start = expand(level.alpha, latents) * latents + expand(level.sigma, latents) * noise[1]
    start = torch.where(segment[:, None, None, None] == 0, noise[1], start)
    ids, empty = (
        teacher.tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        for texts in ([caption(scene) for scene in scenes], [""])
    )
    parts = []
    for rows_ in torch.arange(len(scenes)).split(_TEACHER_BATCH):
        parts.append(_solved(teacher, start[rows_], segment[rows_], ids[rows_], empty))
    return {"start": start, "end": torch.cat(parts), "segment": segment, "input_ids": ids}


@torch.no_grad()
def _solved(teacher: "DiffusionPipeline", x: Tensor, segment: Tensor, ids: Tensor, empty: Tensor) -> Tensor:
    """Return the ends of segments: `SUBSTEPS` guided DDIM steps to the next of the timesteps, or to x_0."""
    ends = torch.tensor([*TIMESTEPS[1:], -1])
    first, last = torch.tensor(TIMESTEPS)[segment], ends[segment]
    condition = torch.cat([teacher.text_encoder(part)[0] for part in (empty.expand(len(ids), -1), ids)])
    abar = teacher.scheduler.alphas_cumprod
    for step in range(SUBSTEPS):
        now, then = ((first + (last - first) * share / SUBSTEPS).round().long() for share in (step, step + 1))
        output = teacher.unet(torch.cat([x, x]), torch.cat([now, now]), condition, return_dict=False)[0]
        output = guide(*output.chunk(2), GUIDANCE)
        level = _level(abar, now)
        x0, epsilon = (convert(output, x, level, "epsilon") for convert in (to_x0, to_epsilon))
        x = ddim_step(x, x0, level, _level(abar, then), epsilon=epsilon).sample
    return x


def _level(abar: Tensor, timesteps: Tensor) -> Level:
    """Return the levels of timesteps, of which -1 is a clean sample's."""
    found = torch.cat([abar.double(), abar.new_ones(1).double()])[timesteps]
    return Level(found.sqrt(), (1 - found).sqrt())


class FewStepTrainer(LatentDiffusionTrainer):
    """Consistency distillation on segments; batches hold `start`, `end` [B, 4, 8, 8], `segment` [B] and `input_ids`."""

    def diffusion_loss(
        self,
        batch: Mapping[str, Any],
        generator: torch.Generator,
        *,
        condition_drop: float = 0.0,
        ema: bool = False,
    ) -> Tensor:
        """Return the mean pseudo-Huber distance of x_0 at the starts to what the averaged weights say at the ends.

        Rows count by the root of their signal-to-noise ratio's root, half-way between an error of x_0, which the first
        step would rule alone, and one of the noise, in which the first step hardly counts.
        """
        segment, condition = batch["segment"], self.condition(batch, None)
        timesteps = torch.tensor(TIMESTEPS, device=segment.device)
        found = self._x0(
            self.ema["unet"] if ema else self.unet, batch["start"], timesteps[segment], condition
        )
        final = len(TIMESTEPS) - 1
        with torch.no_grad():
            following = timesteps[(segment + 1).clamp(max=final)]
            target = self._x0(self.ema["unet"], batch["end"], following, condition)
            target = torch.where(segment[:, None, None, None] == final, batch["end"], target)
        abar = self.alphas_cumprod[timesteps[segment]]
        distance = ((found - target).square().flatten(1).mean(1) + HUBER**2).sqrt() - HUBER
        return (distance * (abar / (1 - abar)) ** 0.25).mean()

    def _x0(self, unet: nn.Module, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        output = unet(x, timesteps, condition.crossattn, return_dict=False)[0].float()
        abar = self.alphas_cumprod[timesteps]
        return to_x0(output, x, Level(abar.sqrt(), (1 - abar).sqrt()), "epsilon")


def build_few_step(data: dict[str, Tensor]) -> "L.LightningModule":
    """Return the shipped `shapes`, whose U-Net is student and whose captions stay frozen."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(resolve_model("testbed:shapes"))
    conditioner = TextConditioner(pipe.text_encoder.eval(), pipe.tokenizer, trained=False)
    return FewStepTrainer(
        pipe.unet,
        pipe.vae,
        conditioner,
        pipe.scheduler,
        learning_rate=RATE,
        scale_factor=pipe.vae.config.scaling_factor,
        ema_decay=0.99,
    )


def few_step_scheduler(config: Mapping[str, Any]) -> Any:
    """Return the `LCMScheduler` whose four steps are `TIMESTEPS`, and whose two and one are among them."""
    from diffusers import LCMScheduler

    return LCMScheduler.from_config(config, original_inference_steps=len(TIMESTEPS), clip_sample=False)


def publish_few_step(module: Any, folder: Path) -> None:
    """Write the averaged model as a `StableDiffusionPipeline` with an `LCMScheduler`."""
    from noiseworks.ldm.conversion.export import to_pipeline

    pipe = copy.deepcopy(to_pipeline(module))
    pipe.scheduler = few_step_scheduler(pipe.scheduler.config)
    shared.save_half(pipe, folder)


def tune_few_step(folder: Path, n: int, seed: int = 0) -> dict[str, float]:
    """Return the share of requested attributes right and the sharpness at four steps, on clean captions."""
    from noiseworks.bench.testbeds.shapes.evaluation import load

    right, sharp = _tried(load(folder), n, seed, len(TIMESTEPS), 1.0)
    return {"share_right": float(right.mean()), "sharpness": float(sharp.mean())}


def _tried(pipe: "DiffusionPipeline", n: int, seed: int, steps: int, guidance: float) -> tuple[Any, Any]:
    from noiseworks.bench.testbeds.shapes.evaluation import sample
    from noiseworks.bench.testbeds.shapes.oracle import score
    from noiseworks.bench.testbeds.shapes.tastes import sharpness

    scenes = sample_scenes(n, seed, "test")
    images = sample(pipe, [caption(scene) for scene in scenes], guidance, steps=steps, seed=seed)
    return score(images, scenes), sharpness(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def measure_few_step(folder: Path, n: int, seed: int = CARD_SEED) -> dict[str, Figure]:
    """Return the card's figures: the model at 4, 2 and 1 steps beside its teacher at more and at as many.

    Args:
        folder: The pipeline's folder.
        n: Prompts.
        seed: Seed of the prompts and the samples.
    """
    from noiseworks.bench.testbeds.shapes.evaluation import load

    few, teacher = load(folder), load(Path(resolve_model("testbed:shapes")))
    tries = [(few, steps, 1.0, f"{steps} steps") for steps in (4, 2, 1)]
    tries += [(teacher, steps, GUIDANCE, f"teacher, {steps} steps, guidance 4") for steps in (50, 20, 4)]
    figures = {}
    for pipe, steps, guidance, name in tries:
        right, sharp = _tried(pipe, n, seed, steps, guidance)
        figures[f"attributes right, {name}"], figures[f"sharpness, {name}"] = figure(right), figure(sharp)
    teacher.scheduler = few.scheduler
    right, sharp = _tried(teacher, n, seed, len(TIMESTEPS), 1.0)
    name = "teacher, the model's own 4 steps"
    figures[f"attributes right, {name}"], figures[f"sharpness, {name}"] = figure(right), figure(sharp)
    return figures
