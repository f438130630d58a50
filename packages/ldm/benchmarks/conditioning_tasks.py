"""Train one model of each conditioning task on the testbed's scenes and judge it on other ones.

    python packages/ldm/benchmarks/conditioning_tasks.py --out runs/tasks --batches 3000

Every model is a tiny U-Net in the latent of `testbed:shapes-vae`. Scenes that were never trained on are requested, and
the testbed's oracle reads what was drawn. Each figure stands between two others: a baseline that does without the
model (another scene's request; bicubic enlarging; a hole in the mean colour of the rest) and the first stage's own
reconstruction of the true scene, which no model in its latent can be expected to exceed by much. A run that was
stopped goes on. The rows are printed as JSON and written to `OUT/scores.json`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes.scenes import IMAGE_SIZE, Scene
from noiseworks.core.artifacts import atomic_write
from noiseworks.ldm.conditioning.degradation import low_resolution
from noiseworks.ldm.conditioning.task_data import box_of, random_masks, scene_data
from noiseworks.ldm.conversion.pipelines import fill, load_model
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.samplers import SampleSettings
from noiseworks.ldm.diffusion.sampling import sample
from noiseworks.ldm.diffusion.training import condition_tensors, train
from noiseworks.ldm.options import RunOptions
from torch import Tensor

TASKS = ("class", "text", "layout", "semantic", "upscale", "inpaint")
JUDGING_SEED = 1000


@dataclass(frozen=True)
class Row:
    """What a task's model reaches, what can be had without it, and what the first stage allows."""

    task: str
    measure: str
    model: float
    baseline: float
    ceiling: float


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (areas - both)


def placed(images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Return the share of requested objects that are there: same shape and colour, boxes overlapping by half."""
    hits = [
        any(
            (item.shape, item.color) == (found.shape, found.color)
            and overlap(box_of(item, IMAGE_SIZE), box_of(found, IMAGE_SIZE)) >= 0.5
            for found in reading.objects
        )
        for reading, scene in zip(shapes.read(images), scenes, strict=True)
        for item in scene.objects
    ]
    return float(np.mean(hits))


def present(images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Return the share of images that hold an object of the scene's class, its first object's shape and colour."""
    wanted = [(scene.objects[0].shape, scene.objects[0].color) for scene in scenes]
    found = [{(item.shape, item.color) for item in reading.objects} for reading in shapes.read(images)]
    return float(np.mean([want in there for want, there in zip(wanted, found, strict=True)]))


def described(images: np.ndarray, scenes: Sequence[Scene]) -> float:
    """Return the mean share of the requested attributes that the oracle finds."""
    return float(shapes.score(images, scenes).mean())


JUDGES: dict[str, tuple[str, Callable[[np.ndarray, Sequence[Scene]], float]]] = {
    "class": ("images with the class", present),
    "text": ("attributes", described),
    "layout": ("objects in their boxes", placed),
    "semantic": ("objects in their places", placed),
}


def psnr(images: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Return the PSNR in dB of all images in [-1, 1] together, or of the pixels where a mask [B, 1, H, W] is 1."""
    error = (images.clamp(-1, 1) - truth).square()
    weight = torch.ones_like(error) if where is None else where.expand_as(error)
    return float(10 * torch.log10(4 * weight.sum() / (error * weight).sum().clamp_min(1e-12)))


def as_arrays(images: Tensor) -> np.ndarray:
    """Return images [B, 3, H, W] in [-1, 1] as [B, H, W, 3] in [0, 1]."""
    return (images.permute(0, 2, 3, 1).numpy() / 2 + 0.5).clip(0, 1)


def judge(task: str, model: LatentModel, scenes: Sequence[Scene], settings: SampleSettings) -> Row:
    """Draw what the scenes ask for and measure it."""
    data = scene_data(task, scenes)
    truth = torch.stack([data.images[row]["image"] for row in range(len(scenes))])
    again = model.decode(model.encode(truth))
    if task == "upscale":
        low = low_resolution(truth, model.factor)
        bicubic = torch.nn.functional.interpolate(low, size=truth.shape[-2:], mode="bicubic")
        made = sample(model, {"low_res": low}, settings=settings, seed=JUDGING_SEED).images
        return Row(task, "PSNR (dB)", *(psnr(images, truth) for images in (made, bicubic, again)))
    if task == "inpaint":
        source = torch.Generator().manual_seed(JUDGING_SEED)
        hole = random_masks(len(truth), *truth.shape[-2:], source)
        seen = (truth * (1 - hole)).sum((2, 3), keepdim=True) / (1 - hole).sum((2, 3), keepdim=True)
        made = fill(model, truth, hole, settings, JUDGING_SEED, 16)
        flat = seen.expand_as(truth)
        return Row(task, "PSNR in the hole (dB)", *(psnr(x, truth, hole) for x in (made, flat, again)))
    if task == "text":
        batch = {"caption": list(data.column)}
    else:
        batch = condition_tensors(task, data, model.conditioner)
        batch = {"layout": data.column} if task == "layout" else batch
    made = as_arrays(sample(model, batch, settings=settings, seed=JUDGING_SEED).images)
    measure, count = JUDGES[task]
    others = [*scenes[1:], scenes[0]]
    return Row(task, measure, count(made, scenes), count(made, others), count(as_arrays(again), scenes))


def main() -> None:
    """Train, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS), help="commas between")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of class, text and layout")
    numbers = {"batches": 3000, "batch-size": 64, "images": 128, "steps": 50, "scenes": 4096, "seed": 0}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    scenes = shapes.sample_scenes(chosen.images, JUDGING_SEED, "test")
    rows = []
    for task in chosen.tasks.split(","):
        run = RunOptions(
            max_steps=chosen.batches,
            batch_size=chosen.batch_size,
            device="cpu",
            seed=chosen.seed,
        )
        trained = train(
            task, "shapes", chosen.out / task, vae="testbed:shapes-vae", scenes=chosen.scenes, run=run
        )
        scale = chosen.guidance_scale if task in ("class", "text", "layout") else 1.0
        settings = SampleSettings(num_inference_steps=chosen.steps, guidance_scale=scale)
        rows.append(asdict(judge(task, load_model(trained.pipeline), scenes, settings)))
        atomic_write(chosen.out / "scores.json", json.dumps(rows, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
