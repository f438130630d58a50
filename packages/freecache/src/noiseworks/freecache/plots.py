"""Pictures of the drift of keys and values: one heat map a kind of position, layers against steps."""

from pathlib import Path

import torch
from noiseworks.freecache.probe import KINDS, Drift
from noiseworks.kits.pictures import Canvas

_CELL, _LEFT, _GAP, _WIDTH = 14, 60, 26, 640


def plot_drift(drift: Drift, path: str | Path) -> Path:
    """Draw the relative change of keys (left) and values (right): rows are layers, columns are steps.

    White is no change and blue the largest change of the picture; grey cells had no position of the kind.

    Args:
        drift: The measured drift.
        path: A file that ends in .svg, .png or .webp.

    Returns:
        The path.
    """
    steps, layers = drift.keys[KINDS[0]].shape
    width = max(2, min(_CELL, (_WIDTH - _LEFT) // (2 * steps)))
    panel = layers * _CELL + _GAP
    canvas = Canvas(_LEFT + 2 * (steps * width + _LEFT), len(KINDS) * panel + _GAP)
    found = torch.stack([part[kind] for part in (drift.keys, drift.values) for kind in KINDS])
    top = float(found[found.isfinite()].max().clamp(min=1e-9))
    for column, (name, part) in enumerate((("keys", drift.keys), ("values", drift.values))):
        for row, kind in enumerate(KINDS):
            x, y = _LEFT + column * (steps * width + _LEFT), _GAP + row * panel
            mean = float(part[kind].nanmean())
            canvas.word(x, y - 14, f"{name}, {kind.replace('_', ' ')}: mean {mean:.4f}")
            names = [f"layer {layer}" for layer in range(layers)]
            canvas.heat_map(part[kind].T / top, (x, y), (width, _CELL), names=names)
    canvas.word(4, 4, f"0 … {top:.3f}")
    return canvas.write(path)
