"""Two random views of each image of a batch, for the contrastive part."""

import torch
from noiseworks.kits.backbones.augmenting import crop_and_flip
from noiseworks.kits.training import Rows
from noiseworks.rrcm.options import Pretraining
from torch import Tensor


def with_views(
    batch: dict[str, Tensor], options: Pretraining, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the batch with views `a` and `b` beside its images `x`, (B, C, H, W) in [-1, 1]."""
    shown = cropped(batch["x"], 1.0, options.flip, generator)
    views = {name: view(shown, options, generator, second=name == "b") for name in ("a", "b")}
    return {"x": shown} | views


def cropped(images: Tensor, smallest: float, flip: bool, generator: torch.Generator) -> Tensor:
    """Return random crops (B, C, H, W) of at least a share of the area, half of them flipped when `flip`."""
    transform = crop_and_flip(smallest, flip)
    return images if transform is None else transform({"x": images}, generator)["x"]


def view(images: Tensor, options: Pretraining, generator: torch.Generator, *, second: bool) -> Tensor:
    """Return a crop of each image, brighter or darker, with more or less contrast.

    Args:
        images: (B, C, H, W) in [-1, 1].
        options: Strengths.
        generator: Of all draws.
        second: Whether it may be solarised.
    """
    shown = cropped(images, options.crop, options.flip, generator) / 2 + 0.5
    drawn = Rows.of(len(images)).draw(
        lambda rows: torch.rand(3, rows, 1, 1, 1, generator=generator).movedim(0, 1)
    )
    light, contrast, inverted = drawn.movedim(1, 0)
    shown = shown * (1 + options.jitter * (2 * light - 1))
    mean = shown.mean((1, 2, 3), keepdim=True)
    shown = (mean + (shown - mean) * (1 + options.jitter * (2 * contrast - 1))).clamp(0, 1)
    if second:
        shown = torch.where((inverted < options.solarise) & (shown >= 0.5), 1 - shown, shown)
    return 2 * shown - 1
