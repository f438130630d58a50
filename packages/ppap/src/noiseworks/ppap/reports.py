"""What the commands draw and measure."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import load_image_model
from noiseworks.kits.pictures import to_pixels
from noiseworks.ppap.diffusers import FAMILIES, attach, draw_images, is_unconditional, timesteps_of
from noiseworks.ppap.guidance import NoisyGuide
from noiseworks.ppap.guide import Guide, load_guide
from noiseworks.ppap.options import Drawing, Guided, Strength, Wanted
from noiseworks.ppap.saving import load_experts
from noiseworks.ppap.tasks import Classification
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class Host:
    """A pipeline with what guides it.

    Attributes:
        pipe: The pipeline.
        reader: The guide, with its experts where there are any.
        judge: Who judges the images.
    """

    pipe: "DiffusionPipeline"
    reader: NoisyGuide
    judge: Guide


def load_host(drawing: Drawing) -> "DiffusionPipeline":
    """Load the pipeline that options name."""
    dtype = drawing.torch_dtype() or torch.float32
    return load_image_model(drawing.model, drawing.torch_device(), dtype, FAMILIES)


def guide_of(guided: Guided, device: torch.device) -> Guide:
    """Load the guide that options name; it is always in 32 bits, where its small gradients stay numbers."""
    return load_guide(guided.guide, guided.temperature, device)


def opened(drawing: Drawing, guided: Guided, experts: Path | None, judge: str | None = None) -> Host:
    """Load a pipeline, a guide and its experts.

    Raises:
        InputError: When the experts are another guide's, or of another number of timesteps.
    """
    device, pipe = drawing.torch_device(), load_host(drawing)
    guide = guide_of(guided, device)
    found = None if experts is None else load_experts(experts, guide).to(device)
    if found is not None and found.bounds[-1] != timesteps_of(pipe):
        raise InputError(f"the experts own {found.bounds[-1]} timesteps, the model has {timesteps_of(pipe)}")
    other = guide if judge is None else load_guide(judge, guided.temperature, device)
    return Host(pipe, NoisyGuide(guide, found), other)


def seeds_of(seed: int, first: int, count: int) -> range:
    """Return the seeds of images `first` to `first + count`."""
    return range(seed + first, seed + first + count)


def picture_of(images: Tensor) -> "np.ndarray":
    """Return images in [-1, 1] of 3 channels, or of one, as uint8 [n, H, W, 3]."""
    return to_pixels(images.expand(-1, 3, -1, -1) / 2 + 0.5)


def target_of(wanted: Wanted) -> Tensor:
    """Return what is wanted of each image: classes [n], or a map for each [n, h, w].

    Raises:
        InputError: When the map cannot be read or is no map.
    """
    if wanted.labels is not None:
        return torch.tensor(wanted.classes()).repeat_interleave(wanted.copies)
    import numpy as np

    try:
        read = np.load(wanted.map, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the map {wanted.map} cannot be read as .npy: {error}") from error
    if read.ndim != 2:
        raise InputError(f"the map {wanted.map} must have two dimensions, it has {read.ndim}")
    found = torch.from_numpy(read)
    return (found.float() if found.is_floating_point() else found.long()).expand(wanted.copies, *read.shape)


def drawn(
    host: Host,
    reader: NoisyGuide | None,
    wanted: Wanted,
    drawing: Drawing,
    strength: Strength,
    batch: int = 16,
) -> Tensor:
    """Return guided images in [-1, 1], one a target; unguided where there is no reader."""
    targets, parts = target_of(wanted), []
    for first in range(0, len(targets), batch):
        part = targets[first : first + batch]
        seeds = seeds_of(drawing.seed, first, len(part))
        if reader is None:
            parts.append(draw_images(host.pipe, seeds, drawing.steps, drawing.prompt))
            continue
        with attach(host.pipe, reader, part, strength):
            parts.append(draw_images(host.pipe, seeds, drawing.steps, drawing.prompt))
    return torch.cat(parts)


@torch.no_grad()
def likelihood(host: Host, images: Tensor, wanted: Wanted) -> dict[str, float]:
    """Return how well the judge finds what was wanted: the mean log-likelihood, and for classes the share found."""
    device = next(host.judge.model.parameters()).device
    output, target = host.judge(images.to(device)), target_of(wanted).to(device)
    host.judge.task.check(output, target)
    found = {"log_likelihood": float(host.judge.task.log_likelihood(output, target).mean())}
    if isinstance(host.judge.task, Classification):
        found["success"] = float((output.argmax(1) == target).float().mean())
    return found


def compared(
    host: Host, wanted: Wanted, drawing: Drawing, strength: Strength
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Draw with every method from the same noise; returns a row a method, and the images by method."""
    plain = NoisyGuide(host.reader.guide)
    methods = {
        "unguided": (None, strength),
        "off-the-shelf": (plain, strength),
        "ppap": (host.reader, strength),
    }
    if is_unconditional(host.pipe):
        methods["off-the-shelf, denoised"] = (plain, replace(strength, through="denoised"))
    rows, shown = [], {}
    for name, (reader, how) in methods.items():
        began = time.perf_counter()
        shown[name] = drawn(host, reader, wanted, drawing, how)
        seconds = (time.perf_counter() - began) / len(shown[name])
        rows.append({"method": name, **likelihood(host, shown[name], wanted), "seconds": seconds})
    return rows, shown
