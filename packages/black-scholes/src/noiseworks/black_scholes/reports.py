"""What a drawing leaves: images, the table of decisions, and a picture of them."""

from pathlib import Path

import torch
from noiseworks.black_scholes.comparison import Blended
from noiseworks.black_scholes.diffusers import BlendTrace
from noiseworks.black_scholes.plots import plot_trace
from noiseworks.core.output import write_rows
from noiseworks.kits.pictures import to_pixels, write_picture


def write_blend(folder: Path, found: Blended) -> list[float]:
    """Write `0000.png` and so on, `trace.csv` and `trace.png` (of the first batch); returns each concept's mean share.

    Args:
        folder: Where the files go.
        found: Images and traces.
    """
    for index, pixels in enumerate(to_pixels(found.images)):
        write_picture(pixels, folder / f"{index:04d}.png")
    write_rows(folder / "trace.csv", trace_rows(found.traces))
    plot_trace(found.traces[0], folder / "trace.png")
    return torch.cat([trace.shares for trace in found.traces]).mean(0).tolist()


def trace_rows(traces: list[BlendTrace]) -> list[dict[str, object]]:
    """Return decisions as records: sample, step, concept, weight, match after the step, ln of the price before it."""
    rows, first = [], 0
    for trace in traces:
        batch, steps, count = trace.weights.shape
        for sample in range(batch):
            for step in range(steps):
                for index in range(count):
                    rows.append(
                        {
                            "sample": first + sample,
                            "step": step,
                            "concept": trace.concepts[sample][index],
                            "weight": _known(trace.weights[sample, step, index]),
                            "match": _known(trace.scores[sample, step, index]),
                            "log_price": _known(trace.prices[sample, step, index]),
                        }
                    )
        first += batch
    return rows


def _known(value: torch.Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
