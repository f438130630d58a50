"""Pictures of what a policy does: similarity per step, and the actions of every sample as a heat map."""

from pathlib import Path

import torch
from noiseworks.kits.pictures import BLUE, FRAME, RED, Canvas
from noiseworks.linear_ag.guidance import Action, GuidanceState
from torch import Tensor

COLORS = {
    Action.UNCOND: (120, 120, 120),
    Action.COND: (235, 235, 235),
    Action.CFG: BLUE,
    Action.LINEAR: (226, 135, 44),
    Action.REUSE: (86, 160, 90),
    Action.PAIR: (140, 180, 230),
}
_WIDTH, _HEIGHT, _MARGIN, _ROW = 640, 240, 48, 10


def plot_trace(state: GuidanceState, path: str | Path, threshold: float | None = None) -> Path:
    """Draw a run: similarity of each sample over the steps, and below it one row of actions a sample.

    Args:
        state: A run's record, from `GuidanceHandle.states`.
        path: The file to write; it ends in .svg, .png or .webp.
        threshold: Drawn as a line.

    Returns:
        The path.
    """
    steps, batch = state.num_steps, state.batch
    canvas = Canvas(_WIDTH, _HEIGHT + 2 * _MARGIN + batch * _ROW)
    gamma = state.gamma[..., 0]
    finite = gamma[gamma.isfinite()]
    low = min(float(finite.min()), 0.999) if len(finite) else 0.0
    for sample in range(batch):
        canvas.line(_points(gamma[:, sample], low))
    left, right, top, bottom = _MARGIN, _WIDTH - _MARGIN, _MARGIN, _MARGIN + _HEIGHT
    if threshold is not None and low <= threshold <= 1.0:
        y = _y(threshold, low)
        canvas.line([(left, y), (right, y)], RED)
        canvas.word(right + 2, y - 6, f"{threshold:.4f}", RED)
    canvas.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], FRAME)
    canvas.word(4, top, "1.0")
    canvas.word(4, bottom - 10, f"{low:.3f}")
    canvas.word(left, 16, f"similarity of the two predictions, {steps} steps, {batch} samples")
    _heat_map(canvas, state)
    return canvas.write(path)


def _heat_map(canvas: Canvas, state: GuidanceState) -> None:
    width = (_WIDTH - 2 * _MARGIN) / state.num_steps
    top = _HEIGHT + _MARGIN + 16
    for sample in range(state.batch):
        for step, action in enumerate(state.actions[:, sample].tolist()):
            if action >= 0:
                x, y = _MARGIN + step * width, top + sample * _ROW
                canvas.box(x, y, width - 1, _ROW - 2, COLORS[Action(action)])


def _y(value: float, low: float) -> float:
    return _MARGIN + _HEIGHT * (1.0 - (value - low) / (1.0 - low))


def _points(values: Tensor, low: float) -> list[tuple[float, float]]:
    width = (_WIDTH - 2 * _MARGIN) / max(len(values) - 1, 1)
    known = torch.isfinite(values).nonzero().flatten().tolist()
    return [(_MARGIN + k * width, _y(float(values[k]), low)) for k in known]
