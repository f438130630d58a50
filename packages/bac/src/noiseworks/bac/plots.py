"""Heat maps of plans, of similarities and of errors, as SVG, PNG or WebP."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from noiseworks.bac.options import Metric, check_picture
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.profiling import FeatureProfile
from noiseworks.bac.report import ErrorReport
from noiseworks.kits.pictures import BLUE, RED, Canvas, shade

_LEFT, _TOP, _GAP = 90, 34, 8
_LIGHT = (235, 240, 247)


def plot_plan(plan: CachePlan, path: str | Path) -> Path:
    """Draw a plan: rows are blocks, columns steps in call order; dark cells are computed, light ones reused.

    Args:
        plan: The plan.
        path: A file that ends with .svg, .png or .webp.

    Returns:
        The path.

    Raises:
        InputError: When the file's name ends otherwise.
    """
    path = check_picture(path)
    blocks, steps = plan.table.shape
    cell = max(3, min(12, 900 // steps))
    canvas = Canvas(_LEFT + steps * cell + 60, _TOP + blocks * 12 + 20)
    touched = int(plan.table.any(0).sum())
    title = f"{plan.method}: {plan.share:.1%} of the blocks are computed, in {touched} of {steps} steps"
    canvas.word(4, 4, title)
    for row, (name, updates) in enumerate(zip(plan.blocks, plan.updates.tolist(), strict=True)):
        y = _TOP + row * 12
        canvas.word(4, y, name)
        canvas.word(_LEFT + steps * cell + 6, y, str(updates))
        for start, stop, computed in _runs(plan.table[row]):
            color = BLUE if computed else _LIGHT
            canvas.box(_LEFT + start * cell, y, (stop - start) * cell, 11, color)
    canvas.word(_LEFT, _TOP + blocks * 12 + 4, "step 0 (noisiest)")
    canvas.word(_LEFT + steps * cell - 40, _TOP + blocks * 12 + 4, f"step {steps - 1}")
    return canvas.write(path)


def plot_similarity(
    profile: FeatureProfile,
    path: str | Path,
    *,
    metric: Metric = "cosine",
    blocks: Sequence[str] | None = None,
) -> Path:
    """Draw the matrices of blocks side by side, a row for each layer; dark is alike, light is different.

    Args:
        profile: The profile.
        path: A file that ends with .svg, .png or .webp.
        metric: Of the profile's metrics.
        blocks: Which blocks; all by default.

    Returns:
        The path.

    Raises:
        InputError: When the file's name ends otherwise or a block or metric was not profiled.
    """
    path = check_picture(path)
    names = profile.blocks if blocks is None else tuple(blocks)
    matrices = [profile.matrix(name, metric) for name in names]
    columns = min(len(names), len(dict.fromkeys(profile.kinds)))
    rows = -(-len(names) // columns)
    side = 100 if path.suffix == ".svg" else 150
    cells = min(profile.num_steps, 50)
    size = max(1, side // cells)
    panel = size * cells + _GAP
    canvas = Canvas(_GAP + columns * panel, _TOP + rows * (panel + 14))
    low, high = min(m.min() for m in matrices), max(m.max() for m in matrices)
    canvas.word(4, 4, f"{metric}: {low:.3f} to {high:.3f}; {profile.observations} observations")
    picked = np.linspace(0, profile.num_steps - 1, cells).round().astype(int)
    for index, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
        x, y = _GAP + index % columns * panel, _TOP + index // columns * (panel + 14)
        canvas.word(x, y - 12, name)
        share = (matrix[np.ix_(picked, picked)] - low) / max(high - low, 1e-12)
        if metric != "cosine":
            share = 1 - share
        for i, line in enumerate(share):
            for j, value in enumerate(line):
                canvas.box(x + j * size, y + i * size, size, size, shade(float(value)))
    return canvas.write(path)


def plot_errors(report: ErrorReport, path: str | Path) -> Path:
    """Draw the errors of a plan's block outputs: rows are blocks, columns steps; a bar on top marks updates.

    A red cell under a bar is the error surge: an output that is computed, from stale inputs. White is no error, full
    red the largest.

    Args:
        report: The errors.
        path: A file that ends with .svg, .png or .webp.

    Returns:
        The path.

    Raises:
        InputError: When the file's name ends otherwise.
    """
    path = check_picture(path)
    blocks, steps = report.errors.shape
    cell, largest = max(3, min(12, 900 // steps)), max(float(report.errors.max()), 1e-12)
    canvas = Canvas(_LEFT + steps * cell + 60, _TOP + blocks * 14 + 6)
    title = f"relative error, up to {largest:.2f}; error of the actions {report.action_error:.4f}"
    canvas.word(4, 4, title)
    for row, name in enumerate(report.blocks):
        y = _TOP + row * 14
        canvas.word(4, y + 2, name)
        canvas.word(_LEFT + steps * cell + 6, y + 2, f"{report.update_error[row]:.3f}")
        for step, error in enumerate(report.errors[row].tolist()):
            canvas.box(_LEFT + step * cell, y + 3, cell, 10, shade(error / largest, RED))
            if report.computed[row, step]:
                canvas.box(_LEFT + step * cell, y, cell, 3, BLUE)
    canvas.word(_LEFT + steps * cell - 60, 18, "mean at updates")
    return canvas.write(path)


def _runs(row: np.ndarray) -> list[tuple[int, int, bool]]:
    """Return (start, stop, value): computed cells one by one, so that they stay countable, reused ones joined."""
    found, start = [], 0
    while start < len(row):
        stop = start + 1
        while not row[start] and stop < len(row) and not row[stop]:
            stop += 1
        found.append((start, stop, bool(row[start])))
        start = stop
    return found
