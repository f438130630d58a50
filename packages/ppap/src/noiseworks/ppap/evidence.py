"""What the claim trains and measures: a classifier of clean digits that guides a pixel model of digits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds.digits.recipes import digit_images
from noiseworks.core.noise import mix64
from noiseworks.kits.backbones.metrics import gaussian_distance
from noiseworks.kits.diffusers_hosts import load_image_model
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.ppap.diffusers import attach, draw_images, noise_levels
from noiseworks.ppap.guidance import NoisyGuide
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Adapters, Strength, Transfer
from noiseworks.ppap.tasks import Classification
from noiseworks.ppap.transferring import learn
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CLASSES = 10
STEPS = 25  # of DDIM, as published
BATCH = 100  # images drawn at a time
RANK, ALPHA, RATE = 4, 8.0, 2e-3
LEVELS = (100, 300, 500, 700)  # timesteps at which a guide's accuracy on noise is noted
NOISED = "share of noised test digits that the guide reads, by timestep"


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        pipe: The pixel model.
        readers: Arm -> the guide; arms without one are not guided.
        judge: Another network than the guide, of another width and seed, that reads the images.
        targets: A class for each image.
        seed: Of the noise.
        notes: What was found on the way.
    """

    pipe: "DiffusionPipeline"
    readers: Mapping[str, NoisyGuide]
    judge: "DigitNetwork"
    targets: Tensor
    seed: int
    notes: tuple[str, ...]


class DigitNetwork(nn.Module):
    """A convolutional classifier of 8x8 digits with batch norms.

    Args:
        width: Channels of the first layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = ((1, width), (width, 2 * width), (2 * width, 2 * width))
        blocks = [
            nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1), nn.BatchNorm2d(outs), nn.ReLU())
            for ins, outs in sizes
        ]
        self.features = nn.Sequential(*blocks[:2], nn.MaxPool2d(2), blocks[2], nn.AvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(8 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, 10] of images [B, 1, 8, 8] around [-1, 1]."""
        return self.head(self.features(x))


def clean_classifier(width: int, steps: int, seed: int) -> DigitNetwork:
    """Train a small classifier on clean digits, as public ones are, each moved by up to a pixel."""
    images, labels = digit_images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitNetwork(width)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(mix64(seed) >> 1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.randint(len(images), (64,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        loss = F.cross_entropy(network(images[rows].roll(shift, (2, 3))), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def prepare(seed: int, context: Context) -> Shared:
    """Train guide and judge, let the model make images, and train the students and the ceiling."""
    settings = context.settings
    pipe = load_image_model(context.model or "testbed:digits-pixels", context.device)
    guide = Guide(clean_classifier(16, settings["clean_steps"], mix64(seed, 1) >> 33), Classification())
    judge = clean_classifier(24, settings["clean_steps"], mix64(seed, 2) >> 33).to(context.device)
    made = synthesised(pipe, settings["synthetic"], mix64(seed, 3) >> 33)
    transfer = Transfer(
        max_steps=settings["steps"],
        batch_size=64,
        learning_rate=RATE,
        flip=False,  # a mirrored digit is none
        seed=seed,
        device=context.device,
    )
    one, five = (Adapters(experts=count, rank=RANK, alpha=ALPHA) for count in (1, 5))
    whole = replace(five, tuned="all")
    images, labels = digit_images()
    lessons = {
        "single": (made, one, transfer, None),
        "fresh": (made, five, replace(transfer, start="fresh"), None),
        "supervised": (images, whole, transfer, labels),
        "ppap": (made, five, transfer, None),
    }
    readers = {"off_the_shelf": NoisyGuide(guide), "denoised": NoisyGuide(guide)}
    for number, (arm, (clean, adapters, options, known)) in enumerate(lessons.items()):
        context.progress(number, len(lessons), "experts")
        readers[arm] = NoisyGuide(guide, learn(pipe, guide, clean, adapters, options, labels=known))
    targets = torch.arange(CLASSES).repeat(settings["copies"])
    return Shared(pipe, readers, judge, targets, seed, found_first(guide, judge, readers["ppap"]))


@torch.no_grad()
def found_first(guide: Guide, judge: DigitNetwork, ppap: NoisyGuide) -> tuple[str, ...]:
    """Return how good guide and judge are on digits that nobody learned from, and how small an expert is."""
    images, labels = digit_images("test")
    device = next(judge.parameters()).device
    right = [
        float((network(images.to(device)).argmax(1).cpu() == labels).float().mean())
        for network in (guide, judge)
    ]
    own = sum(one.numel() for one in ppap.experts.parts[0].parameters())
    whole = sum(one.numel() for one in guide.model.parameters())
    return (
        f"the guide is right on {right[0]:.0%} of clean test digits, the judge on {right[1]:.0%}; "
        f"an expert has {own} of the guide's {whole} parameters",
    )


def synthesised(pipe: "DiffusionPipeline", count: int, seed: int) -> Tensor:
    """Return what the model makes by itself, 8-bit as images are stored."""
    parts = [
        draw_images(pipe, range(seed + i, seed + min(i + BATCH, count)), STEPS)
        for i in range(0, count, BATCH)
    ]
    return torch.cat(parts).clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


@torch.no_grad()
def noisy_accuracy(pipe: "DiffusionPipeline", reader: NoisyGuide, seed: int) -> list[float]:
    """Return the share of noised test digits that a guide reads right at each of `LEVELS`."""
    images, labels = digit_images("test")
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    alpha, sigma = noise_levels(pipe)
    device = next(reader.guide.model.parameters()).device
    read = [reader.output((alpha[t] * images + sigma[t] * noise).to(device), t) for t in LEVELS]
    return [float((one.argmax(1).cpu() == labels).float().mean()) for one in read]


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Draw an arm's images at the judged scale and at others, and let the judge read them."""
    began = time.perf_counter()
    images = guided(arm, shared, context.settings["scale"])
    metrics = {"success": right(shared, images), "seconds": (time.perf_counter() - began) / len(images)}
    metrics["distance"] = distance(shared.judge, images)
    for scale in () if arm == "unguided" else context.settings["others"]:
        part = replace(shared, targets=shared.targets[:BATCH])
        metrics[f"success at {scale:g}"] = right(part, guided(arm, part, scale))
    reader = shared.readers.get(arm)
    series = {} if reader is None else {NOISED: (LEVELS, noisy_accuracy(shared.pipe, reader, shared.seed))}
    shown = images[:CLASSES].expand(-1, 3, -1, -1)
    picture = write_picture(strip(to_pixels(shown / 2 + 0.5), scale=4), context.folder / f"{arm}.png")
    return Measurement(metrics, series, {label: picture}, shared.notes)


@torch.no_grad()
def right(shared: Shared, images: Tensor) -> list[float]:
    """Return 1 for images in which the judge reads the wanted class."""
    read = shared.judge(images.to(next(shared.judge.parameters()).device)).argmax(1).cpu()
    return (read == shared.targets).double().tolist()


@torch.no_grad()
def distance(judge: DigitNetwork, images: Tensor) -> float:
    """Return the Frechet distance to the test digits in the judge's features, which are averaged over places."""
    device = next(judge.parameters()).device
    found: list[Tensor] = []
    for one in (images, digit_images("test")[0]):
        features = judge.features(one.to(device)).unflatten(1, (-1, 4)).mean(2).double().cpu()
        found += [features.mean(0), features.T.cov()]
    return gaussian_distance(*found)


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
