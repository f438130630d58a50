"""Traces for the eye: a table in the terminal, and one self-contained HTML page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_number
from noiseworks.core.options import Whole
from noiseworks.core.output import check_file
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from noiseworks.mdpo.trace import Trace

_STYLE = """
body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:2px 6px;text-align:center;white-space:pre}
th{background:#f3f3f3;font-weight:600}td.m{color:#888}td.new{font-weight:700;outline:2px solid #333;outline-offset:-2px}
td.back{outline:2px dashed #b3261e;outline-offset:-2px}.key{color:#555}
"""


@dataclass(frozen=True)
class TraceView:
    """One row of a trace, for the terminal.

    Attributes:
        trace: A trace with one row.
        out: The HTML page that was written, if any.
    """

    trace: "Trace"
    out: str | None = None

    def to_dict(self) -> dict:
        """Return step by step what was read and predicted."""
        steps = [
            {"input": text_of(self.trace, x.tolist()), "prediction": text_of(self.trace, p.tolist())}
            for x, p in zip(self.trace.inputs[:, 0], self.trace.predictions[:, 0], strict=True)
        ]
        return {"steps": steps, "final": text_of(self.trace, self.trace.final[0].tolist()), "out": self.out}

    def __rich__(self) -> Table:
        table = Table("step", "canvas (grey: predicted here, still masked)", title=self.out)
        for step in range(self.trace.steps):
            inputs, made = self.trace.inputs[step, 0].tolist(), self.trace.predictions[step, 0].tolist()
            line = Text()
            for known, word in zip(inputs, text_of(self.trace, made), strict=True):
                line.append(word + " ", style="grey50" if known == self.trace.mask_id else "bold")
            table.add_row(str(step), line)
        table.add_row("end", Text(" ".join(text_of(self.trace, self.trace.final[0].tolist())), style="bold"))
        return table


def _colour(score: float) -> str:
    return f"hsl({120 * min(max(score, 0.0), 1.0):.0f} 70% 85%)"


def text_of(trace: "Trace", ids: Sequence[int]) -> list[str]:
    """Return the display text of ids: words where known, `·` for [MASK], else the number."""
    words = trace.words or {}
    return ["·" if i == trace.mask_id else words.get(i, str(i)) for i in ids]


def _cells(trace: "Trace", step: int) -> str:
    x, made = trace.inputs[step, 0].tolist(), trace.predictions[step, 0].tolist()
    scores = trace.scores[step, 0].tolist()
    after = (trace.inputs[step + 1] if step + 1 < trace.steps else trace.final)[0].tolist()
    cells = []
    for known, later, word, score in zip(x, after, text_of(trace, made), scores, strict=True):
        masked, stays = known == trace.mask_id, later != trace.mask_id
        kind = ("new" if stays else "m") if masked else ("" if stays else "back")
        colour = _colour(score)
        cells.append(
            f'<td class="{kind}" style="background:{colour}" title="confidence {score:.3f}">'
            f"{html.escape(word)}</td>"
        )
    return "".join(cells)


def html_page(trace: "Trace", title: str = "Denoising trace") -> str:
    """Return a self-contained page that shows one row step by step.

    Args:
        trace: A trace with one row; its first row is shown.
        title: Heading.
    """
    length = trace.inputs.shape[2]
    head = "".join(f"<th>{i}</th>" for i in range(length))
    body = "".join(f"<tr><th>{step}</th>{_cells(trace, step)}</tr>" for step in range(trace.steps))
    final = "".join(f"<td>{html.escape(word)}</td>" for word in text_of(trace, trace.final[0].tolist()))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        '<p class="key">One line a step: the full prediction, coloured by its confidence (red 0, green 1). Grey: '
        "stays masked. Framed: revealed at this step. Dashed: revealed earlier, masked again here.</p>"
        f"<table><tr><th>step</th>{head}</tr>{body}<tr><th>end</th>{final}</tr></table></html>\n"
    )


def view_trace(trace: Path, *, out: Path | None = None, row: Whole = 0) -> TraceView:
    """Show a recorded trace in the terminal, and write it as an HTML page.

    Args:
        trace: A file that `generate --trace` wrote.
        out: HTML file to write; by default none.
        row: Which prompt of the trace.

    Returns:
        The view.
    """
    if out is not None:
        check_file(out, (".html",), sources=(trace,))
    from noiseworks.mdpo.trace import Trace

    loaded = Trace.load(trace)
    check_number("row", row, low=0, high=loaded.inputs.shape[1] - 1, integer=True)
    chosen = loaded.row(row)
    if out is not None:
        atomic_write(out, html_page(chosen))
    return TraceView(chosen, None if out is None else str(out))
