"""Gradients averaged over what an attacker may do to a picture first: expectation over transformation (EOT).

Each step draws a transformation an image: JPEG, shrinking, blur or noise, differentiable versions of what `purifiers`
does to files. None moves the picture, so that masks stay where they are. Source: arXiv 1707.07397, eq. 2; JPEG with
soft rounding after Shin and Song, JPEG-resistant adversarial images (2017).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.protection.engine import Gradient
from torch import Tensor

Rounding = Literal["soft", "straight"]
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
COLOR = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # 99 in the other places


def quantization(quality: int) -> tuple[Tensor, Tensor]:
    """Return JPEG's tables for luminance and colour, [8, 8] each (ITU-T T.81, annex K, scaled as in libjpeg)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    color = torch.full((8, 8), 99)
    color[:4, :4] = torch.tensor(COLOR)
    tables = (torch.tensor(LUMINANCE), color)
    return tuple(((table * scale + 50) // 100).clamp(1, 255).double() for table in tables)  # ty: ignore


def _rounded(values: Tensor, rounding: Rounding) -> Tensor:
    """Return rounded values; their slope is 3 (v - round v)^2, or 1 straight through."""
    whole = values.detach().round()
    return whole + (values - whole) ** 3 if rounding == "soft" else values + (whole - values).detach()


def _cosines() -> Tensor:
    """Return the orthonormal transform of 8 values, rows by frequency."""
    n = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows


def _recoded(plane: Tensor, table: Tensor, rounding: Rounding) -> Tensor:
    """Return planes [B, H, W], sides divisible by 8, centred on 0, after quantising their 8x8 blocks."""
    height, width = plane.shape[-2:]
    turn, table = _cosines().to(plane), table.to(plane)
    blocks = plane.reshape(-1, height // 8, 8, width // 8, 8).transpose(2, 3)
    found = turn.T @ (_rounded(turn @ blocks @ turn.T / table, rounding) * table) @ turn
    return found.transpose(2, 3).reshape(-1, height, width)


def jpeg(images: Tensor, quality: int = 75, rounding: Rounding = "soft") -> Tensor:
    """Return images [B, 3, H, W] in [0, 1] after JPEG with 4:2:0 colour, differentiable.

    Args:
        images: In [0, 1].
        quality: 1 to 100.
        rounding: `soft` adds the cube of what rounding leaves, `straight` gives the exact values and lets the gradient
            through as if nothing had been rounded.
    """
    height, width = images.shape[-2:]
    padded = F.pad(255 * images, (0, -width % 16, 0, -height % 16), mode="replicate")
    red, green, blue = padded.unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    colors = F.avg_pool2d(torch.stack([(blue - light) / 1.772, (red - light) / 1.402], dim=1), 2)
    luminance, color = quantization(quality)
    light = _recoded(light - 128, luminance, rounding) + 128
    small = _recoded(colors.flatten(0, 1), color, rounding).unflatten(0, colors.shape[:2])
    cb, cr = F.interpolate(small, scale_factor=2, mode="bilinear").unbind(1)
    rgb = [light + 1.402 * cr, light - 0.344136 * cb - 0.714136 * cr, light + 1.772 * cb]
    return torch.stack(rgb, dim=1)[..., :height, :width].div(255).clamp(0, 1)


def resize(images: Tensor, factor: float = 0.5) -> Tensor:
    """Return images shrunk by a factor (area average) and enlarged again (bicubic)."""
    size = images.shape[-2:]
    small = [max(1, round(side * factor)) for side in size]
    shrunk = F.interpolate(images, size=small, mode="area")
    return F.interpolate(shrunk, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Return images under a Gaussian of `sigma` pixels, edges repeated."""
    radius = min(math.ceil(4 * sigma), min(images.shape[-2:]) - 1)
    axis = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    bell = torch.exp(-(axis**2) / (2 * sigma**2))
    bell = (bell / bell.sum()).expand(3, 1, 1, -1)
    wide = F.conv2d(F.pad(images, (radius, radius, 0, 0), mode="replicate"), bell, groups=3)
    return F.conv2d(F.pad(wide, (0, 0, radius, radius), mode="replicate"), bell.mT, groups=3)


def noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Return images with Gaussian noise of `sigma` levels of 255."""
    added = torch.randn(images.shape, generator=generator).to(images)
    return (images + sigma / 255 * added).clamp(0, 1)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


# Name -> image [1, 3, H, W] and its stream -> the image under strengths drawn from the stream.
TRANSFORMS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda image, g: image,
    "jpeg": lambda image, g: jpeg(image, int(_between(50, 96, g))),
    "resize": lambda image, g: resize(image, _between(0.5, 1.0, g)),
    "blur": lambda image, g: blur(image, _between(0.3, 1.5, g)),
    "noise": lambda image, g: noise(image, _between(0.0, 8.0, g), g),
}


@dataclass
class Transformed:
    """An objective whose gradient is taken through a transformation that is drawn an image in every call.

    Attributes:
        gradient: The objective.
        names: Of `TRANSFORMS`; one is drawn an image, all equally often.
    """

    gradient: Gradient
    names: tuple[str, ...] = ("none", "jpeg", "resize", "blur")

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("name at least one transformation")

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient with respect to the images, and the objective at the transformed ones."""
        images = images.detach().requires_grad_()
        rows = []
        for image, generator in zip(images, generators, strict=True):
            pick = int(torch.randint(len(self.names), (1,), generator=generator))
            rows.append(TRANSFORMS[self.names[pick]](image[None], generator))
        changed = torch.cat(rows)
        found, value = self.gradient(changed.detach(), generators)
        return torch.autograd.grad(changed, images, found.to(changed))[0], value
