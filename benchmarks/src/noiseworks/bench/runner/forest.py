"""The forest plot of committed results: how much of what each paper promises was measured, one row a method."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from noiseworks.bench.runner.display import estimate_text, outcome_word, target_of, threshold_text
from noiseworks.bench.runner.verdicts import no_effect_value

WIDTH, LABELS, FIGURES, ROW, TOP, BOTTOM = 1040, 210, 510, 26, 8, 30
LEAST, MOST = -0.5, 3.5  # promised effects that the axis shows; an arrow points to what lies outside
STYLE = """
svg{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
text{fill:#1c1e21}.muted{fill:#6a6f76}.line{stroke:#dddcd5}.promise{stroke:#1f5fbf;stroke-width:1.5}.bold{font-weight:600}
.holds{--c:#1d7a46}.partly{--c:#9a6a00}.worse{--c:#b3261e}.void{--c:#7d3fa0}.no-effect{--c:#6a6f76}
.mark{fill:var(--c);stroke:var(--c)}.word{fill:var(--c);font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}
@media (prefers-color-scheme:dark){text{fill:#e4e5e3}.muted{fill:#979ca3}.line{stroke:#33373c}.promise{stroke:#7fb0ff}
.holds{--c:#6ccb93}.partly{--c:#e0b24a}.worse{--c:#ff8a80}.void{--c:#cf9cec}.no-effect{--c:#979ca3}}
"""


def share_of_promise(target: Mapping[str, Any], value: float) -> float:
    """Return an effect in units of the promised one: 0 where nothing changed, 1 at the promise.

    Ratios are compared as logarithms. A target that only promises the better side has no unit: its effect is in units
    of its estimate.
    """
    neutral = no_effect_value(target_of(target))
    promise, estimate = target["threshold"], target["estimate"]
    if target["kind"] == "ratio":
        # A mean of the method's arm, and so a ratio, can be 0; the axis ends long before its logarithm.
        neutral, promise, estimate, value = (
            math.log(max(one, 1e-9)) for one in (neutral, promise, estimate, value)
        )
    unit = promise - neutral or abs(estimate - neutral) * (1 if target["better"] == "higher" else -1) or 1.0
    return (value - neutral) / unit


def forest(families: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the plot as a whole SVG file with a light and a dark look.

    Args:
        families: Title -> judged claims of a results file.
    """
    left, right = LABELS, WIDTH - FIGURES

    def place(share: float) -> float:
        share = min(max(share, LEAST), MOST)
        return round(left + (share - LEAST) / (MOST - LEAST) * (right - left), 1)

    rows: list[str] = []
    y = TOP
    for title, claims in families.items():
        y += ROW
        rows.append(f'<text x="0" y="{y - 8}" class="muted">{escape(title)}</text>')
        for claim in claims:
            y += ROW
            rows.append(_row(claim, y - ROW / 2, place))
    height = y + BOTTOM
    grid = [
        f'<line x1="{place(at)}" x2="{place(at)}" y1="{TOP}" y2="{y}" class="{kind}"/>'
        f'<text x="{place(at)}" y="{y + 20}" class="middle muted">{word}</text>'
        for at, kind, word in (
            (0, "line", "no change"),
            (1, "promise", "promised"),
            (2, "line", "twice"),
        )
    ]
    told = "Measured effects in units of the promised ones, with 95 % intervals, one row a method"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><title>{told}</title>'
        f"<style>{STYLE}</style>{''.join(grid)}{''.join(rows)}</svg>\n"
    )


def _row(claim: Mapping[str, Any], y: float, place: Any) -> str:
    target, word = claim["targets"][0], outcome_word(claim)
    low, high = sorted(share_of_promise(target, end) for end in target["interval"])
    centre = share_of_promise(target, target["estimate"])
    measured = f"{estimate_text(target).partition(' ')[0]}, promised {threshold_text(target)}"
    told = f"{target['name']}: {measured}"
    shown = f"{_short(target['name'])}: {measured}"
    arrow = "→" if centre > MOST else "←" if centre < LEAST else ""
    return (
        f'<g class="{word.replace(" ", "-")}"><title>{escape(claim["method"])}: {escape(told)}, {word}</title>'
        f'<text x="12" y="{y + 4}" class="bold">{escape(claim["method"])}</text>'
        f'<line x1="{place(low)}" x2="{place(high)}" y1="{y}" y2="{y}" class="mark" stroke-width="2.5"/>'
        f'<circle cx="{place(centre)}" cy="{y}" r="4.5" class="mark"/>'
        f'<text x="{place(centre) + 8}" y="{y + 4}" class="word">{arrow}</text>'
        f'<text x="{WIDTH - FIGURES + 24}" y="{y + 4}" class="word">{word}</text>'
        f'<text x="{WIDTH - FIGURES + 102}" y="{y + 4}" class="muted">{escape(shown)}</text></g>'
    )


def _short(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
