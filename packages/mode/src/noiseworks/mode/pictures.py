"""The heat map of expert usage."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from noiseworks.core.artifacts import atomic_write
from noiseworks.mode.config import check_ending
from PIL import Image, ImageDraw
from torch import Tensor

_CELL, _LEFT, _TOP, _GAP = 34, 70, 40, 16
_FULL = (31, 93, 170)


def draw_usage(usage: Tensor, sigmas: Sequence[float], path: Path) -> Path:
    """Draw one panel a layer, experts against noise levels; white is never used and blue the whole mixture.

    Args:
        usage: Weights [L, N, E], rows of sum 1.
        sigmas: The N noise levels.
        path: The PNG or WebP file to write.
    """
    check_ending(path, (".png", ".webp"))
    layers, steps, experts = usage.shape
    panel = experts * _CELL + _GAP + 14
    image = Image.new("RGB", (_LEFT + steps * _CELL + 40, _TOP + layers * panel), "white")
    draw = ImageDraw.Draw(image)
    draw.text((_LEFT, 4), "weight of each expert by noise level (sigma)", fill="black")
    for j, sigma in enumerate(sigmas):
        draw.text((_LEFT + j * _CELL, 22), f"{sigma:.1g}", fill=(90, 90, 90))
    for i, layer in enumerate(usage.tolist()):
        top = _TOP + i * panel
        draw.text((4, top), f"layer {i}", fill="black")
        for j, row in enumerate(layer):
            for e, weight in enumerate(row):
                x, y = _LEFT + j * _CELL, top + 14 + e * _CELL
                color = tuple(round(255 + weight * (end - 255)) for end in _FULL)
                draw.rectangle([x, y, x + _CELL - 2, y + _CELL - 2], fill=color, outline=(225, 225, 225))
        for e in range(experts):
            draw.text((10, top + 24 + e * _CELL), f"expert {e}", fill=(90, 90, 90))
    buffer = BytesIO()
    image.save(
        buffer,
        "PNG" if path.suffix == ".png" else "WEBP",
        **({"lossless": True} if path.suffix == ".webp" else {}),
    )
    atomic_write(path, buffer.getvalue())
    return path
