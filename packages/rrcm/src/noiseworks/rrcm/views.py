"""Two random views of each image of a batch, for the contrastive part."""

import math

import torch
import torch.nn.functional as F
from noiseworks.rrcm.options import Pretraining
from torch import Tensor


def with_views(
    batch: dict[str, Tensor], options: Pretraining, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the batch with views `a` and `b` beside its images `x`, (B, C, H, W) in [-1, 1]."""
    images = mirrored(batch["x"], options.flip, generator)
    views = {name: view(images, options, generator, second=name == "b") for name in ("a", "b")}
    return {"x": images} | views


def mirrored(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Return the images, half of them mirrored when `flip`."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None] & torch.tensor(flip), images.flip(-1), images)


def view(images: Tensor, options: Pretraining, generator: torch.Generator, *, second: bool) -> Tensor:
    """Return a crop of each image at its own size, brighter or darker, with more or less contrast.

    Args:
        images: (B, C, H, W) in [-1, 1].
        options: Strengths.
        generator: Of all draws.
        second: Whether it may be solarised.
    """
    draws = torch.rand(len(images), 7, generator=generator)
    area = options.crop + (1 - options.crop) * draws[:, 0]
    stretch = (draws[:, 1].mul(2).sub(1) * math.log(4 / 3) / 2).exp()
    size = (area.sqrt()[:, None] * torch.stack([stretch, 1 / stretch], dim=1)).clamp(max=1)
    middle = (draws[:, 2:4].mul(2).sub(1)) * (1 - size)
    maps = torch.zeros(len(images), 2, 3)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = size[:, 0], size[:, 1], middle
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    shown = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False) / 2 + 0.5
    brightness, contrast = (1 + options.jitter * (2 * draws[:, 4:6] - 1)).unbind(1)
    shown = shown * brightness[:, None, None, None]
    mean = shown.mean((1, 2, 3), keepdim=True)
    shown = (mean + (shown - mean) * contrast[:, None, None, None]).clamp(0, 1)
    if second and options.solarise:
        bright = (draws[:, 6] < options.solarise)[:, None, None, None] & (shown >= 0.5)
        shown = torch.where(bright, 1 - shown, shown)
    return 2 * mirrored(shown, options.flip, generator) - 1
