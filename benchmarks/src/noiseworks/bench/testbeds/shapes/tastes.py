"""People with tastes: what images look like in six numbers, what a taste makes of them, and who chooses what.

A taste is a direction in the space of the six features; its choices follow Bradley and Terry. `quality` is a rule that
no caption states (object in the middle, in strong contrast), read from pixels; `quality_read` is a second scorer of the
same rule that shares nothing with it but the rule: the oracle's reading.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.bench.testbeds.shapes.oracle import read
from noiseworks.bench.testbeds.shapes.scenes import BACKGROUNDS, COLORS, IMAGE_SIZE, render, sample_scenes

if TYPE_CHECKING:
    from torch import Generator, Tensor

FEATURES = ("warmth", "brightness", "size", "right", "low", "background")
TEMPERATURE = 0.5
_MIDDLE = IMAGE_SIZE / 2
_FAINT, _OPAQUE = (
    0.15,
    0.5,
)  # RGB distances from the background between which a pixel belongs to an object in part


def raw_features(images: "Tensor") -> "Tensor":
    """Return what an image looks like, float32 [n, 6]; where no object is seen its features are 0.

    `warmth` (red minus blue) and `brightness` of the object's colour, its `size` (share of the pixels), how far `right`
    and how `low` it is (in half images, from the middle), brightness of the `background`.

    Args:
        images: [n, 3, H, W] in [0, 1].
    """
    import torch

    images = images.float()
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)
    background = border.median(-1).values  # [n, 3]
    distance = (images - background[..., None, None]).square().sum(1).sqrt()
    mask = ((distance - _FAINT) / (_OPAQUE - _FAINT)).clamp(0, 1)
    area = mask.sum((1, 2))
    seen = area > 4
    weight = mask / area.clamp(min=1)[:, None, None]
    color = (weight[:, None] * images).sum((2, 3))
    line = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1] * 2 - 1
    right, low = (weight.sum(1) * line).sum(1), (weight.sum(2) * line).sum(1)
    size = area / mask[0].numel()
    parts = torch.stack([color[:, 0] - color[:, 2], color.mean(1), size, right, low], 1)
    return torch.cat([parts * seen[:, None], background.mean(1, keepdim=True)], 1)


@cache
def _scale() -> tuple["Tensor", "Tensor"]:
    import torch

    scenes = [scene for scene in sample_scenes(1000, 0) if scene.kind == "single"]
    found = raw_features(torch.from_numpy(render(scenes)).permute(0, 3, 1, 2))
    return found.mean(0), found.std(0)


def features(images: "Tensor") -> "Tensor":
    """Return `raw_features` in units of their spread over training scenes with one object, around their mean [n, 6]."""
    mean, std = _scale()
    return (raw_features(images) - mean) / std


def tastes(count: int, seed: int) -> "Tensor":
    """Return unit vectors, one a person, float32 [count, 6]; person i does not depend on `count`."""
    import torch

    rows = [
        np.random.default_rng([seed, 31, number]).standard_normal(len(FEATURES)) for number in range(count)
    ]
    found = torch.from_numpy(np.stack(rows)).float()
    return found / found.norm(dim=1, keepdim=True)


def prefers_first(
    first: "Tensor", second: "Tensor", generator: "Generator", temperature: float = TEMPERATURE
) -> "Tensor":
    """Return whether the first of two is chosen, bool [n], with the probability sigmoid((a - b) / temperature).

    Args:
        first: Utilities a [n].
        second: Utilities b [n].
        generator: Of the draws.
        temperature: How noisy choices are, in units of utility.
    """
    import torch

    chance = torch.sigmoid((first - second) / temperature)
    return torch.rand(len(chance), generator=generator) < chance


def quality(images: "Tensor", captions: Sequence[str] | None = None) -> "Tensor":
    """Return how far an image keeps the hidden rule, [n] in [0, 1]: half for the middle, half for contrast.

    Args:
        images: [n, 3, H, W] in [0, 1].
        captions: Not looked at; a reward is called with them.
    """
    import torch

    found = raw_features(images)
    away = found[:, 3:5].norm(dim=1) / 0.57  # a corner place is 0.57 away
    contrast = (found[:, 1] - found[:, 5]).abs() / 0.5
    seen = found[:, 2] > 0
    return seen * (0.5 * (1 - away).clamp(0, 1) + 0.5 * contrast.clamp(0, 1)).to(torch.float32)


def quality_read(images: "Tensor", captions: Sequence[str] | None = None) -> "Tensor":
    """Return the same rule as the oracle reads it, [n] in {0, 1/2, 1}: nearest place the middle, brightness apart.

    Args:
        images: [n, 3, 32, 32] in [0, 1].
        captions: Not looked at.
    """
    import torch

    found = []
    for reading in read(images.permute(0, 2, 3, 1).float().cpu().numpy()):
        first = reading.objects[0] if reading.objects else None
        if first is None or first.color is None:
            found.append(0.0)
            continue
        apart = abs(np.mean(COLORS[first.color]) - np.mean(BACKGROUNDS[reading.background]))
        found.append(0.5 * (first.position == "center") + 0.5 * float(apart > 0.4))
    return torch.tensor(found)


def steepness(images: "Tensor") -> "Tensor":
    """Return how steep edges are, [n]: the mean of the steepest 2 % of the steps between neighbours, in RGB distances.

    Blur lowers it, and so does a loss of contrast.

    Args:
        images: [n, 3, H, W] in [0, 1].
    """
    across = (images[..., :-1, 1:] - images[..., :-1, :-1]).square()
    down = (images[..., 1:, :-1] - images[..., :-1, :-1]).square()
    steps = (across + down).sum(1).sqrt().flatten(1)
    return steps.topk(max(1, steps.shape[1] // 50), dim=1).values.mean(1)


def sharpness(images: "Tensor") -> "Tensor":
    """Return how sharp images are, [n]: `steepness` in units of the contrast.

    The contrast is the range that all but 2 % of the pixels at either end lie in. So neither contrast nor brightness
    changes it, and the size of the object hardly does; blur lowers it. Without any contrast it is 0.

    Args:
        images: [n, 3, H, W] in [0, 1].
    """
    import torch

    ends = torch.quantile(images.flatten(2), torch.tensor([0.02, 0.98]).to(images), dim=2)
    contrast = (ends[1] - ends[0]).norm(dim=1)
    return torch.where(contrast > 1e-6, steepness(images) / contrast.clamp(min=1e-6), 0.0)
