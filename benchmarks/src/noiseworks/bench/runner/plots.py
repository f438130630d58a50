"""Plots of a claim as inline SVG whose colours and letters are the page's: light, dark or printed."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from noiseworks.bench.runner.display import number

ARM_COLOURS = 8
WIDTH, LABELS, ROW = 460, 190, 26
CURVE_HEIGHT, LEFT, BOTTOM = 190, 48, 24
# What a page's style sheet gives a drawing, for one that stands alone: letters, lines and the arms' colours.
ALONE = """
svg{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
--ink:#1c1e21;--line:#dddcd5;--muted:#6a6f76;
--arm-0:#7a7f87;--arm-1:#1f5fbf;--arm-2:#c2571a;--arm-3:#2c8a57;--arm-4:#8a4fb0;--arm-5:#b08a00;--arm-6:#b03060;--arm-7:#008b94}
text{fill:var(--ink)}.grid{stroke:var(--line)}.end{text-anchor:end}.middle{text-anchor:middle;fill:var(--muted)}
@media (prefers-color-scheme:dark){svg{
--ink:#e4e5e3;--line:#33373c;--muted:#979ca3;--arm-0:#9aa0a8;--arm-1:#7fb0ff;--arm-2:#f0935a;
--arm-3:#6cc795;--arm-4:#c79be6;--arm-5:#d9b840;--arm-6:#ee85ab;--arm-7:#55c4cc}}
"""


def claim_plots(claim: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a claim's plots as `{"caption", "svg"}`: each column's metric over the arms, then each curve."""
    plots = []
    for metric, label in claim["columns"].items():
        arms = [arm for arm in claim["arms"] if metric in claim["summary"].get(arm["name"], {})]
        if arms:
            plots.append({"caption": label, "svg": metric_plot(claim, metric, label, arms)})
    return plots + [{"caption": name, "svg": curve_plot(claim, name)} for name in series_names(claim)]


def standalone(claim: Mapping[str, Any]) -> str:
    """Return the metric of a claim's first target over its arms as an SVG file, light or dark as the screen is."""
    metric = claim["targets"][0]["metric"]
    arms = [arm for arm in claim["arms"] if metric in claim["summary"].get(arm["name"], {})]
    label, height = claim["columns"].get(metric, metric), ROW * len(arms) + BOTTOM
    inner = metric_plot(claim, metric, label, arms).split(">", 1)[1]
    heading = f'<text x="{LABELS}" y="-10">{escape(label)}</text>'
    return svg_file(f"0 -{ROW} {WIDTH} {height + ROW}", heading + inner)


def standalone_curve(claim: Mapping[str, Any], name: str) -> str:
    """Return the curve `name` of a claim's arms as an SVG file, light or dark as the screen is."""
    head, inner = curve_plot(claim, name).split(">", 1)
    return svg_file(head.split('viewBox="')[1].split('"')[0], inner)


def svg_file(view: str, inner: str) -> str:
    """Return what a drawing holds, up to its closing tag, as a file with a style of its own."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" viewBox="{view}" role="img">'
        f"<style>{ALONE}</style>{inner}\n"
    )


def series_names(claim: Mapping[str, Any]) -> list[str]:
    """Return the names of a claim's curves in the order of their first appearance."""
    runs = [run for measured in claim["measurements"].values() for run in measured]
    return list(dict.fromkeys(name for run in runs for name in run["series"]))


def colour(index: int) -> str:
    """Return the page's colour of the arm with this index."""
    return f"var(--arm-{index % ARM_COLOURS})"


def metric_plot(claim: Mapping[str, Any], metric: str, label: str, arms: Sequence[Mapping[str, Any]]) -> str:
    """Draw one row an arm: the mean, its 95 % interval, and each seed's mean as a faint dot."""
    order = {arm["name"]: index for index, arm in enumerate(claim["arms"])}
    cells = [claim["summary"][arm["name"]][metric] for arm in arms]
    seeds = [
        [float(np.mean(run["metrics"][metric])) for run in claim["measurements"][arm["name"]]] for arm in arms
    ]
    values = [
        value
        for cell, own in zip(cells, seeds, strict=True)
        for value in (cell["mean"], *cell["interval"], *own)
    ]
    axis = Axis(min(values), max(values), LABELS, WIDTH - 12)
    height = ROW * len(arms) + BOTTOM
    parts, told = vertical_grid(axis, height), []
    for row, (arm, cell, own) in enumerate(zip(arms, cells, seeds, strict=True)):
        y, paint = ROW * (row + 0.5), colour(order[arm["name"]])
        low, high = (axis.place(end) for end in cell["interval"])
        parts.append(
            f'<text x="{LABELS - 12}" y="{y + 4}" class="end">{escape(shorten(arm["label"]))}</text>'
        )
        parts += [
            f'<circle cx="{axis.place(value)}" cy="{y}" r="2.5" fill="{paint}" opacity=".35"/>'
            for value in own
        ]
        parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{paint}" stroke-width="2.5"/>')
        parts.append(f'<circle cx="{axis.place(cell["mean"])}" cy="{y}" r="4.5" fill="{paint}"/>')
        told.append(f"{arm['label']} {number(cell['mean'])}")
    return svg(height, f"{label}: {', '.join(told)}", parts)


def curve_plot(claim: Mapping[str, Any], name: str) -> str:
    """Draw one line an arm: the mean over seeds where they share x values, with the seeds faint behind it."""
    drawn: list[tuple[int, str, list[tuple[list[float], list[float]]]]] = []
    for index, arm in enumerate(claim["arms"]):
        runs = claim["measurements"][arm["name"]]
        curves = [run["series"][name] for run in runs if name in run["series"]]
        if curves:
            drawn.append((index, arm["label"], [known_points(*curve) for curve in curves]))
    xs = [x for _, _, curves in drawn for points, _ in curves for x in points]
    ys = [y for _, _, curves in drawn for _, points in curves for y in points]
    if not xs:
        return svg(ROW, f"{name}: no point was measured", [])
    legend = ROW * math.ceil(len(drawn) / 2)
    height = legend + CURVE_HEIGHT
    across = Axis(min(xs), max(xs), LEFT, WIDTH - 10)
    up = Axis(min(ys), max(ys), height - BOTTOM, legend + 6)
    parts = [*vertical_grid(across, height, lines=False), *horizontal_grid(up)]
    for row, (index, label, curves) in enumerate(drawn):
        shared = len(curves) > 1 and all(x == curves[0][0] for x, _ in curves)
        for x, y in curves:
            parts.append(polyline(across, up, x, y, colour(index), faint=shared))
        if shared:
            mean = np.mean([y for _, y in curves], axis=0).tolist()
            parts.append(polyline(across, up, curves[0][0], mean, colour(index), faint=False))
        x, y = (row % 2) * WIDTH / 2, ROW * (row // 2 + 0.5)
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="{y}" y2="{y}" stroke="{colour(index)}" stroke-width="2.5"/>'
            f'<text x="{x + 24}" y="{y + 4}">{escape(shorten(label, 30))}</text>'
        )
    return svg(height, f"{name}: {', '.join(label for _, label, _ in drawn)}", parts)


def known_points(xs: Sequence[float], ys: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Return the points of a curve whose value is known."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


class Axis:
    """Maps values to places between two ends, with round numbers as ticks."""

    def __init__(self, low: float, high: float, start: float, end: float):
        spread = (high - low) or abs(high) or 1.0
        self.low, self.high = low - 0.05 * spread, high + 0.05 * spread
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """Return where a value lies, in the SVG's units."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, most: int = 5) -> list[float]:
        """Return at most `most` multiples of 1, 2, 2.5 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step = next(
            power * factor
            for factor in (1, 2, 2.5, 5, 10)
            if (self.high - self.low) / (power * factor) <= most
        )
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


def vertical_grid(axis: Axis, height: float, *, lines: bool = True) -> list[str]:
    """Return ticks with their numbers below, and lines upwards from them."""
    parts = []
    for tick in axis.ticks():
        x = axis.place(tick)
        if lines:
            parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" class="middle">{number(tick)}</text>')
    return parts


def horizontal_grid(axis: Axis) -> list[str]:
    """Return lines with their numbers at the left."""
    parts = []
    for tick in axis.ticks():
        y = axis.place(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" class="end">{number(tick)}</text>')
    return parts


def polyline(
    across: Axis, up: Axis, xs: Sequence[float], ys: Sequence[float], paint: str, *, faint: bool
) -> str:
    """Return a line through points; a single point is a dot."""
    opacity, width = ("0.3", 1) if faint else ("1", 2)
    if len(xs) == 1:
        x, y = across.place(xs[0]), up.place(ys[0])
        return f'<circle cx="{x}" cy="{y}" r="4" fill="{paint}" opacity="{opacity}"/>'
    points = " ".join(f"{across.place(x)},{up.place(y)}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{paint}" stroke-width="{width}" opacity="{opacity}"/>'


def svg(height: float, title: str, parts: Sequence[str]) -> str:
    """Return a drawing with a title that screen readers read and the pointer shows."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def shorten(label: str, length: int = 25) -> str:
    """Return a label cut to a length that leaves room for the plot."""
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"
