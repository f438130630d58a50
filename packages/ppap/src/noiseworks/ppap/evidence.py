"""What the claim trains and measures: a classifier of clean scenes that guides a pixel model of scenes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.shapes import read, sample_scenes
from noiseworks.bench.testbeds.shapes.pixels import pixel_scenes
from noiseworks.bench.testbeds.shapes.scenes import COLORS, SHAPES
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts import load_image_model
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.ppap.diffusers import attach, draw_images
from noiseworks.ppap.guidance import NoisyGuide
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Adapters, Strength, Transfer
from noiseworks.ppap.tasks import Classification
from noiseworks.ppap.transferring import learn
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CLASSES = [(shape, color) for shape in SHAPES for color in COLORS]
STEPS = 25  # of DDIM, as published
BATCH = 48  # images drawn at a time
RANK, ALPHA, RATE = 4, 8.0, 2e-3


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        pipe: The pixel model.
        readers: Arm -> the guide; arms without one are not guided.
        targets: A class for each image.
        seed: Of the noise.
        notes: What was found on the way.
    """

    pipe: "DiffusionPipeline"
    readers: Mapping[str, NoisyGuide]
    targets: Tensor
    seed: int
    notes: tuple[str, ...]


def labelled_scenes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return scenes that show one kind of object, [m, 3, 16, 16] in [-1, 1], and their classes [m]."""
    scenes, images = sample_scenes(n, seed), pixel_scenes(n, seed)
    rows = [i for i, scene in enumerate(scenes) if scene.kind != "relation"]
    labels = [CLASSES.index((scenes[i].objects[0].shape, scenes[i].objects[0].color)) for i in rows]
    return images[rows], torch.tensor(labels)


def clean_classifier(images: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """Train a small classifier on clean images, as public ones are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = ((3, 32, 1), (32, 64, 2), (64, 64, 2))
        blocks = [
            nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1), nn.BatchNorm2d(outs), nn.ReLU())
            for ins, outs, stride in sizes
        ]
        network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 16, len(CLASSES)))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(mix64(seed) >> 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.randint(len(images), (128,), generator=generator)
        loss = F.cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def prepare(seed: int, context: Context) -> Shared:
    """Train the clean classifier, let the model make images, and train the students and the ceiling."""
    settings = context.settings
    pipe = load_image_model(context.model or "testbed:shapes-pixels", context.device)
    images, labels = labelled_scenes(settings["labelled"], mix64(seed, 1) % 2**31)
    guide = Guide(clean_classifier(images, labels, settings["clean_steps"], seed), Classification())
    made = synthesised(pipe, settings["synthetic"], mix64(seed, 2) % 2**31)
    context.progress(1, 4, "students")
    transfer = Transfer(
        max_steps=settings["steps"], batch_size=64, learning_rate=RATE, flip=False, seed=seed, device="auto"
    )
    readers = {"off_the_shelf": NoisyGuide(guide), "denoised": NoisyGuide(guide)}
    for arm, count in (("single", 1), ("ppap", 5)):
        adapters = Adapters(experts=count, rank=RANK, alpha=ALPHA)
        readers[arm] = NoisyGuide(guide, learn(pipe, guide, made, adapters, transfer))
        context.progress(2 + (count > 1), 4, "students")
    ceiling = learn(pipe, guide, images, Adapters(experts=1, tuned="all"), transfer, labels=labels)
    readers["supervised"] = NoisyGuide(guide, ceiling)
    held, held_labels = labelled_scenes(400, mix64(seed, 3) % 2**31)
    right = (guide(held).argmax(1) == held_labels).float().mean()
    own = sum(one.numel() for one in readers["single"].experts.parts[0].parameters())
    whole = sum(one.numel() for one in guide.model.parameters())
    notes = (
        f"the guide is right on {right:.0%} of clean scenes; an expert has {own} of its {whole} parameters",
    )
    targets = torch.arange(settings["images"]) % len(CLASSES)
    return Shared(pipe, readers, targets, seed, notes)


def synthesised(pipe: "DiffusionPipeline", count: int, seed: int) -> Tensor:
    """Return what the model makes by itself, 8-bit as images are stored."""
    parts = [
        draw_images(pipe, range(seed + i, seed + min(i + 100, count)), STEPS) for i in range(0, count, 100)
    ]
    return torch.cat(parts).clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def oracle_right(images: Tensor, targets: Tensor) -> list[float]:
    """Return 1 for images in which the oracle reads the class, [n, 3, 16, 16] in [-1, 1]; it is no network."""
    large = F.interpolate(images, scale_factor=2).div(2).add(0.5).clamp(0, 1)
    readings = read(large.permute(0, 2, 3, 1).numpy())
    seen = [{(one.shape, one.color) for one in reading.objects} for reading in readings]
    return [float(found == {CLASSES[int(target)]}) for found, target in zip(seen, targets, strict=True)]


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Draw an arm's images at the judged scale, and let the oracle read them."""
    began = time.perf_counter()
    images = guided(arm, shared, context.settings["scale"])
    seconds = (time.perf_counter() - began) / len(images)
    picture = write_picture(strip(to_pixels(images[:12] / 2 + 0.5), scale=3), context.folder / f"{arm}.png")
    right = oracle_right(images, shared.targets)
    return Measurement({"success": right, "seconds": seconds}, images={label: picture}, notes=shared.notes)


def guided(arm: str, shared: Shared, scale: float) -> Tensor:
    """Return an arm's images, from the same noise for all."""
    parts, reader = [], shared.readers.get(arm)
    strength = Strength(scale=scale, through="denoised" if arm == "denoised" else "sample")
    for first in range(0, len(shared.targets), BATCH):
        targets = shared.targets[first : first + BATCH]
        seeds = [mix64(shared.seed, 9, first + i) >> 2 for i in range(len(targets))]
        if reader is None:
            parts.append(draw_images(shared.pipe, seeds, STEPS))
            continue
        with attach(shared.pipe, reader, targets, strength):
            parts.append(draw_images(shared.pipe, seeds, STEPS))
    return torch.cat(parts)
