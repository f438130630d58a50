"""The heat map of expert usage."""

from collections.abc import Sequence
from pathlib import Path

from noiseworks.kits.pictures import FRAME, Canvas, shade
from noiseworks.mode.config import check_ending
from torch import Tensor

_CELL, _LEFT, _TOP, _GAP = 34, 70, 40, 16
_EDGE = (225, 225, 225)


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
    canvas = Canvas(_LEFT + steps * _CELL + 40, _TOP + layers * panel)
    canvas.word(_LEFT, 4, "weight of each expert by noise level (sigma)")
    for j, sigma in enumerate(sigmas):
        canvas.word(_LEFT + j * _CELL, 22, f"{sigma:.1g}", FRAME)
    for i, layer in enumerate(usage.tolist()):
        top = _TOP + i * panel
        canvas.word(4, top, f"layer {i}")
        for j, row in enumerate(layer):
            for e, weight in enumerate(row):
                x, y = _LEFT + j * _CELL, top + 14 + e * _CELL
                canvas.box(x, y, _CELL - 1, _CELL - 1, _EDGE)
                canvas.box(x + 1, y + 1, _CELL - 3, _CELL - 3, shade(weight))
        for e in range(experts):
            canvas.word(10, top + 24 + e * _CELL, f"expert {e}", FRAME)
    return canvas.write(path)
