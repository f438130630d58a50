"""Pictures that methods on backbones share: samples by class, masked images, and maps side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.schedules import table_schedule
from noiseworks.kits.backbones.masking import to_images
from noiseworks.kits.backbones.options import Draw
from noiseworks.kits.backbones.sampling import sample
from noiseworks.kits.pictures import Canvas, grid, to_pixels, write_picture

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

COLUMNS, SMALLEST = 10, 48  # images a row, and the side in pixels to which small images are blown up
MAP = 320


def draw_classes(model: "nn.Module", schedule: str, draw: Draw, path: Path) -> "Tensor":
    """Draw images of the classes in turn, write them as one picture, and return them (n, C, H, W).

    Args:
        model: A `DiT`, or a model like it.
        schedule: Kind of its noise schedule.
        draw: How many, and how.
        path: A file that ends in .png or .webp.
    """
    labels = torch.arange(draw.n) % max(1, model.null_label)
    images = sample(
        model,
        labels,
        table_schedule(schedule),
        steps=draw.steps,
        guidance_scale=draw.guidance_scale,
        seeds=range(draw.seed, draw.seed + draw.n),
    ).cpu()
    write_classes(images, path)
    return images


def write_classes(images: "Tensor", path: Path) -> None:
    """Write images (n, C, H, W) in [-1, 1] as one picture, ten a row."""
    pixels = _pixels(images)
    rows = {f"from {first}": pixels[first : first + COLUMNS] for first in range(0, len(images), COLUMNS)}
    write_picture(grid(rows, scale=max(1, SMALLEST // images.shape[-1])), path)


def masked_pictures(images: "Tensor", filled: "Tensor", removed: "Tensor", patch: int, path: Path) -> None:
    """Write images, what is left of them, and what a model made of that, as three rows of one picture.

    Args:
        images: (n, C, H, W) in [-1, 1].
        filled: The same, with predictions in removed patches.
        removed: bool (n, N).
        patch: Side of a patch in pixels.
        path: A file that ends in .png or .webp.
    """
    hidden = removed[..., None].expand(-1, -1, patch**2 * images.shape[1]).to(images.dtype)
    seen = images * (1 - to_images(hidden, patch, images.shape[1]))
    rows = {"image": _pixels(images), "kept": _pixels(seen), "filled": _pixels(filled)}
    write_picture(grid(rows, scale=max(1, SMALLEST // images.shape[-1])), path)


def _pixels(images: "Tensor") -> "np.ndarray":
    colours = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    return to_pixels((colours.clamp(-1, 1) + 1) / 2)


def two_maps(path: Path, first: "Tensor", about_first: str, second: "Tensor", about_second: str) -> None:
    """Write two tables of shares from 0 to 1 side by side, each below a caption."""
    canvas = Canvas(2 * MAP + 40, MAP + 30)
    for index, (values, about) in enumerate(((first, about_first), (second, about_second))):
        left = 10 + index * (MAP + 20)
        canvas.word(left, 5, about)
        canvas.heat_map(values, (left, 22), (MAP / values.shape[1], MAP / values.shape[0]))
    canvas.write(path)
