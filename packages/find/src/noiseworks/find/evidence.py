"""What the claim fits and measures: captions of `shapes` that its pipeline draws right now and then.

All arms score equally many images a caption. Success is a caption of which the oracle reads everything right, on draws
that no arm has seen.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.core.noise import mix64
from noiseworks.find.diffusers import PipelineDrawing
from noiseworks.find.fitting import FIND, best_noise, cross_entropy
from noiseworks.find.noise import NoisePolicy
from noiseworks.find.options import Fitting, Objective
from noiseworks.find.reports import Source, images_from
from noiseworks.kits.diffusers_hosts import load_pipeline
from noiseworks.kits.image_tuning import Rollout, diversity
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from torch import Tensor

ROLLOUT = Rollout(num_inference_steps=10, guidance_scale=3.0, rollout_batch=64)
# For some hundreds of images, ranks, batches and larger steps than published; chosen on tuning seeds.
OBJECTIVE = Objective(advantage="ranks")
BATCH, LEARNING_RATE = 24, 0.1
LOOKED_AT = 16  # images by which captions are chosen
WANTED = 0.35  # share of them that is right
WINDOW, GAIN = 48, 0.15  # when a fit has gained: its last draws are so much more often right
# Rollouts that rewards of the arm `stale` are older: the share of a fit that the released code's 20 of 150 are at most.
LAG = 3


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: captions with their drawings, and how often standard normal noise is right."""

    seed: int
    drawings: Sequence[PipelineDrawing]
    base: float


@dataclass
class Scored:
    """A black box that remembers what its images were worth, in order.

    Attributes:
        drawing: What draws.
        lag: Calls by which the rewards that it returns are late.
        scores: Of all images so far, share right of the caption.
    """

    drawing: PipelineDrawing
    lag: int = 0
    scores: list[Tensor] = field(default_factory=list)

    def __call__(self, z: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the rewards of noise, or those of the noise `lag` calls ago."""
        self.scores.append(share_right(self.drawing(z, seeds), self.drawing.prompt))
        return self.scores[max(0, len(self.scores) - 1 - self.lag)]

    def images_until(self, success: float) -> int:
        """Return after how many images the last `WINDOW` were right so often, all of them where that never was."""
        right = (torch.cat(self.scores) == 1).double()
        for end in range(WINDOW, len(right) + 1):
            if right[end - WINDOW : end].mean() >= success:
                return end
        return len(right)


def share_right(images: Tensor, prompt: str) -> Tensor:
    """Return the share right of what a caption states [n]."""
    return torch.from_numpy(shapes.caption_score(images, [prompt] * len(images))).float()


def prepare(seed: int, context: Context) -> Shared:
    """Take the captions of a seed of which a share nearest to `WANTED` comes out right by itself."""
    settings = context.settings
    pipe = load_pipeline(context.model or "testbed:shapes", context.device)
    texts = dict.fromkeys(shapes.caption(scene) for scene in shapes.sample_scenes(200, seed, "test"))
    drawings = [PipelineDrawing(pipe, text, ROLLOUT) for text in list(texts)[: int(settings["candidates"])]]
    found = []
    for drawing in drawings:
        images = images_from(drawing, None, LOOKED_AT, mix64(seed, 7) >> 2)
        found.append(float((share_right(images, drawing.prompt) == 1).float().mean()))
    order = sorted(range(len(found)), key=lambda i: abs(found[i] - WANTED))
    chosen = order[: int(settings["prompts"])]
    return Shared(seed, [drawings[i] for i in chosen], fmean(found[i] for i in chosen))


def fitted(arm: str, drawing: PipelineDrawing, seed: int, budget: int) -> tuple[Source, Scored]:
    """Return where an arm's noise comes from, and the record of the images that it scored for that."""
    worth = Scored(drawing, LAG if arm == "stale" else 0)
    if arm == "best_noise":
        return best_noise(worth, drawing.shape, budget, seed), worth
    if arm == "cem":
        return cross_entropy(worth, drawing.shape, budget, seed), worth
    options = Fitting(max_steps=budget // BATCH, batch_size=BATCH, learning_rate=LEARNING_RATE, seed=seed)
    return FIND(worth, drawing.shape, drawing.text, options, OBJECTIVE).fit(progress=False), worth


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Fit an arm to each caption and return what fresh draws are worth; one row a draw, or a caption."""
    metrics: dict[str, list[float]] = {"success": [], "score": [], "diversity": [], "mean_abs": []}
    shown, draws, budget = [], int(context.settings["draws"]), int(context.settings["budget"])
    for number, drawing in enumerate(shared.drawings):
        source: Source = None
        if arm != "standard":
            began = time.perf_counter()
            source, worth = fitted(arm, drawing, 100 * shared.seed + number, budget)
            metrics.setdefault("seconds", []).append(time.perf_counter() - began)
            if arm != "best_noise":  # whose images are of many noises until the last one is chosen
                metrics.setdefault("images", []).append(float(worth.images_until(shared.base + GAIN)))
        images = images_from(drawing, source, draws, mix64(shared.seed, number, 9) >> 2)
        scores = share_right(images, drawing.prompt)
        metrics["score"] += scores.tolist()
        metrics["success"] += (scores == 1).float().tolist()
        metrics["diversity"].append(float(diversity(images, torch.zeros(draws, dtype=torch.long))[0]))
        mean = source.mean.detach() if isinstance(source, NoisePolicy) else torch.zeros(1)
        metrics["mean_abs"].append(float(mean.abs().mean()))
        shown.append(images[:8])
        context.progress(number + 1, len(shared.drawings), label)
    picture = strip(to_pixels(torch.cat(shown)), columns=8 * len(shown), scale=2)
    return Measurement(metrics, images={label: write_picture(picture, context.folder / f"{arm}.png")})
