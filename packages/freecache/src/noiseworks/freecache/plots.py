"""Pictures of the drift of keys and values: one heat map a kind of position, layers against steps."""

from pathlib import Path

import torch
from noiseworks.freecache.probe import KINDS, Drift
from PIL import Image, ImageDraw
from torch import Tensor

_CELL, _LEFT, _GAP, _WIDTH = 14, 60, 26, 640


def plot_drift(drift: Drift, path: str | Path) -> Path:
    """Draw the relative change of keys (left) and values (right): rows are layers, columns are steps.

    White is no change and blue the largest change of the picture; grey cells had no position of the kind.

    Args:
        drift: The measured drift.
        path: The PNG file to write.

    Returns:
        The path.
    """
    steps, layers = drift.keys[KINDS[0]].shape
    width = max(2, min(_CELL, (_WIDTH - _LEFT) // (2 * steps)))
    panel = layers * _CELL + _GAP
    image = Image.new("RGB", (_LEFT + 2 * (steps * width + _LEFT), len(KINDS) * panel + _GAP), "white")
    draw = ImageDraw.Draw(image)
    found = torch.stack([part[kind] for part in (drift.keys, drift.values) for kind in KINDS])
    top = float(found[found.isfinite()].max().clamp(min=1e-9))
    for column, (name, part) in enumerate((("keys", drift.keys), ("values", drift.values))):
        for row, kind in enumerate(KINDS):
            corner = (_LEFT + column * (steps * width + _LEFT), _GAP + row * panel)
            mean = float(part[kind].nanmean()) if bool(part[kind].isfinite().any()) else float("nan")
            title = f"{name}, {kind.replace('_', ' ')}: mean {mean:.4f}"
            draw.text((corner[0], corner[1] - 14), title, fill="black")
            _heat_map(draw, part[kind], corner, width, top)
    draw.text((4, 4), f"0 … {top:.3f}", fill="black")
    image.save(path)
    return Path(path)


def _heat_map(
    draw: ImageDraw.ImageDraw, found: Tensor, corner: tuple[int, int], width: int, top: float
) -> None:
    for step, row in enumerate(found.tolist()):
        for layer, value in enumerate(row):
            x, y = corner[0] + step * width, corner[1] + layer * _CELL
            share = 0.0 if value != value else min(value / top, 1.0)
            color = (200, 200, 200) if value != value else _blue(share)
            draw.rectangle([x, y, x + width - 1, y + _CELL - 1], fill=color)
    for layer in range(found.shape[1]):
        draw.text((corner[0] - 52, corner[1] + layer * _CELL), f"layer {layer}", fill=(90, 90, 90))


def _blue(share: float) -> tuple[int, int, int]:
    return tuple(round(255 + share * (end - 255)) for end in (31, 93, 170))
