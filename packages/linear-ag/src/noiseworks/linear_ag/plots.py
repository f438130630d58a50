"""Pictures of what a policy does: similarity per step, and the actions of every sample as a heat map."""

from pathlib import Path

import torch
from noiseworks.linear_ag.guidance import Action, GuidanceState
from PIL import Image, ImageDraw
from torch import Tensor

COLORS = {
    Action.UNCOND: (120, 120, 120),
    Action.COND: (235, 235, 235),
    Action.CFG: (31, 93, 170),
    Action.LINEAR: (226, 135, 44),
    Action.REUSE: (86, 160, 90),
    Action.PAIR: (140, 180, 230),
}
_WIDTH, _HEIGHT, _MARGIN, _ROW = 640, 240, 48, 10


def plot_trace(state: GuidanceState, path: str | Path, threshold: float | None = None) -> Path:
    """Draw a run: similarity of each sample over the steps, and below it one row of actions a sample.

    Args:
        state: A run's record, from `GuidanceHandle.states`.
        path: The PNG file to write.
        threshold: Drawn as a line.

    Returns:
        The path.
    """
    steps, batch = state.num_steps, state.batch
    image = Image.new("RGB", (_WIDTH, _HEIGHT + 2 * _MARGIN + batch * _ROW), "white")
    draw = ImageDraw.Draw(image)
    gamma = state.gamma[..., 0]
    finite = gamma[gamma.isfinite()]
    low = min(float(finite.min()), 0.999) if len(finite) else 0.0
    for sample in range(batch):
        draw.line(_points(gamma[:, sample], low), fill=(31, 93, 170), width=1)
    if threshold is not None and low <= threshold <= 1.0:
        y = _y(threshold, low)
        draw.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], fill=(200, 60, 60))
        draw.text((_WIDTH - _MARGIN + 2, y - 6), f"{threshold:.4f}", fill=(200, 60, 60))
    draw.rectangle([_MARGIN, _MARGIN, _WIDTH - _MARGIN, _MARGIN + _HEIGHT], outline=(90, 90, 90))
    draw.text((4, _MARGIN), "1.0", fill="black")
    draw.text((4, _MARGIN + _HEIGHT - 10), f"{low:.3f}", fill="black")
    draw.text(
        (_MARGIN, 16), f"similarity of the two predictions, {steps} steps, {batch} samples", fill="black"
    )
    _heat_map(draw, state)
    image.save(path)
    return Path(path)


def _heat_map(draw: ImageDraw.ImageDraw, state: GuidanceState) -> None:
    width = (_WIDTH - 2 * _MARGIN) / state.num_steps
    top = _HEIGHT + _MARGIN + 16
    for sample in range(state.batch):
        for step, action in enumerate(state.actions[:, sample].tolist()):
            if action >= 0:
                x, y = _MARGIN + step * width, top + sample * _ROW
                draw.rectangle([x, y, x + width - 1, y + _ROW - 2], fill=COLORS[Action(action)])


def _y(value: float, low: float) -> float:
    return _MARGIN + _HEIGHT * (1.0 - (value - low) / (1.0 - low))


def _points(values: Tensor, low: float) -> list[tuple[float, float]]:
    width = (_WIDTH - 2 * _MARGIN) / max(len(values) - 1, 1)
    known = torch.isfinite(values).nonzero().flatten().tolist()
    return [(_MARGIN + k * width, _y(float(values[k]), low)) for k in known]
