"""Pictures: the heat map of expert usage, and rollouts as animated WebP files."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from PIL import Image, ImageDraw
from torch import Tensor

_CELL, _LEFT, _TOP, _GAP = 34, 70, 40, 16
_FULL = (31, 93, 170)


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file name with another ending.

    Raises:
        InputError: Naming the endings.
    """
    if path.suffix not in suffixes:
        raise InputError(f"the file must end in {' or '.join(suffixes)}, got {path}")


def draw_usage(usage: Tensor, sigmas: Sequence[float], path: Path) -> Path:
    """Draw one panel a layer, experts against noise levels; white is never used and blue the whole mixture.

    Args:
        usage: Weights [L, N, E], rows of sum 1.
        sigmas: The N noise levels.
        path: The PNG or WebP file to write.
    """
    check_suffix(path, (".png", ".webp"))
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


def tile(pictures: Sequence[np.ndarray], columns: int = 4, scale: int = 2) -> list[np.ndarray]:
    """Return frames that show episodes side by side; one that is over keeps its last picture.

    Args:
        pictures: Per episode uint8 [S_i, H, W, 3].
        columns: Episodes in a row.
        scale: How often a pixel is repeated.
    """
    longest = max(map(len, pictures))
    padded = [np.concatenate((p, np.repeat(p[-1:], longest - len(p), axis=0))) for p in pictures]
    padded += [np.full_like(padded[0], 255)] * (-len(padded) % columns if len(padded) > columns else 0)
    rows = [np.concatenate(padded[i : i + columns], axis=2) for i in range(0, len(padded), columns)]
    return list(np.concatenate(rows, axis=1).repeat(scale, axis=1).repeat(scale, axis=2))
