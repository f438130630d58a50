"""A picture of what was decided: the scores of a sample over the steps, and each sample's choices as a heat map."""

from pathlib import Path

from noiseworks.black_scholes.diffusers import BlendTrace
from noiseworks.kits.pictures import BLUE, FRAME, RED, Canvas, Color

COLORS: tuple[Color, ...] = (BLUE, RED, (86, 160, 90), (226, 135, 44), (120, 80, 160), (120, 120, 120))
_WIDTH, _HEIGHT, _MARGIN, _ROW = 640, 200, 48, 10


def plot_trace(trace: BlendTrace, path: str | Path, sample: int = 0) -> Path:
    """Draw a run: matches of one sample's concepts over the steps, and below them which concept conditioned each step.

    Args:
        trace: A run's record.
        path: The file to write; it ends in .svg, .png or .webp.
        sample: The sample whose matches are drawn.

    Returns:
        The path.
    """
    scores, choices = trace.scores[sample], trace.choices
    batch, steps = choices.shape
    canvas = Canvas(_WIDTH, _HEIGHT + 2 * _MARGIN + batch * _ROW + 16)
    left, right, top, bottom = _MARGIN, _WIDTH - _MARGIN, _MARGIN, _MARGIN + _HEIGHT
    known = scores[scores.isfinite()]
    high = max(float(known.max()), 1.0) if len(known) else 1.0
    canvas.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], FRAME)
    canvas.word(4, top, f"{high:.1f}")
    canvas.word(4, bottom - 10, "0")
    width = (right - left) / steps
    for index, concept in enumerate(trace.concepts[sample]):
        color = COLORS[index % len(COLORS)]
        canvas.word(left + 8 + index * 180, 16, concept[:28], color)
        values = scores[:, index].tolist()
        points = [(left + (k + 0.5) * width, v) for k, v in enumerate(values) if v == v]
        canvas.line([(x, bottom - max(v, 0) / high * _HEIGHT) for x, v in points], color)
    for row in range(batch):
        for step, choice in enumerate(choices[row].tolist()):
            if choice >= 0:
                y = bottom + 16 + row * _ROW
                canvas.box(left + step * width, y, width - 1, _ROW - 2, COLORS[choice % len(COLORS)])
    return canvas.write(path)
