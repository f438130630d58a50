"""Plots of a claim as inline SVG whose colours follow the page: light, dark or printed."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-in colours that become CSS variables: text, grid lines, then one for each arm.
INK, GRID = "#010203", "#010204"
ARM_COLOURS = 8
WIDTH = 4.4  # inches; the page scales it
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def claim_plots(claim: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a claim's plots as `{"caption", "svg"}`: each column's metric over the arms, then each curve."""
    plots = []
    for metric, label in claim["columns"].items():
        arms = [arm for arm in claim["arms"] if metric in claim["summary"].get(arm["name"], {})]
        if arms:
            figure = _metric_figure(claim, metric, arms)
            plots.append({"caption": label, "svg": to_svg(figure, f"{claim['method']}-metric-{len(plots)}")})
    for name in series_names(claim):
        figure = _series_figure(claim, name)
        plots.append({"caption": name, "svg": to_svg(figure, f"{claim['method']}-series-{len(plots)}")})
    return plots


def series_names(claim: Mapping[str, Any]) -> list[str]:
    """Return the names of a claim's curves in the order of their first appearance."""
    runs = [run for measured in claim["measurements"].values() for run in measured]
    return list(dict.fromkeys(name for run in runs for name in run["series"]))


def colour(index: int) -> str:
    """Return the stand-in colour of the arm with this index."""
    return f"#0102{16 + index % ARM_COLOURS:02x}"


def to_svg(figure: "Figure", prefix: str) -> str:
    """Return a figure as an SVG element with CSS variables for colours and ids that no other figure has."""
    from matplotlib import rc_context

    file = StringIO()
    with rc_context({**STYLE, "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--line)")
    for index in range(ARM_COLOURS):
        svg = svg.replace(colour(index), f"var(--arm-{index})")
    return svg


def _metric_figure(claim: Mapping[str, Any], metric: str, arms: Sequence[Mapping[str, Any]]) -> "Figure":
    """One row an arm: the mean, its 95 % interval, and each seed's mean as a faint dot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.34 * len(arms)), layout="constrained")
        axes = figure.subplots()
        order = {arm["name"]: index for index, arm in enumerate(claim["arms"])}
        for row, arm in enumerate(arms):
            own = colour(order[arm["name"]])
            cell = claim["summary"][arm["name"]][metric]
            seeds = [np.mean(run["metrics"][metric]) for run in claim["measurements"][arm["name"]]]
            axes.plot(seeds, [row] * len(seeds), "o", color=own, alpha=0.3, markersize=3.5, markeredgewidth=0)
            axes.plot(cell["interval"], [row, row], "-", color=own, linewidth=2, solid_capstyle="round")
            axes.plot([cell["mean"]], [row], "o", color=own, markersize=6, markeredgewidth=0)
        axes.set_yticks(range(len(arms)), [shorten(arm["label"]) for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
    return figure


def _series_figure(claim: Mapping[str, Any], name: str) -> "Figure":
    """One line an arm: the mean over seeds where they share x values, with the seeds faint behind it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
        axes = figure.subplots()
        for index, arm in enumerate(claim["arms"]):
            runs = claim["measurements"][arm["name"]]
            curves = [run["series"][name] for run in runs if name in run["series"]]
            xs, ys = zip(*curves, strict=True) if curves else ((), ())
            shared = len(curves) > 1 and all(list(x) == list(xs[0]) for x in xs)
            for number, (x, y) in enumerate(curves):
                label = None if shared or number else shorten(arm["label"])
                faint = {"alpha": 0.3, "linewidth": 0.8} if shared else {"linewidth": 1.5}
                axes.plot(x, np.array(y, dtype=float), color=colour(index), label=label, **faint)
            if shared:
                mean = np.mean(np.array(ys, dtype=float), axis=0)
                axes.plot(xs[0], mean, color=colour(index), linewidth=1.6, label=shorten(arm["label"]))
        axes.grid(axis="y")
        axes.locator_params(nbins=5)
        axes.spines["left"].set_visible(False)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def shorten(label: str, length: int = 26) -> str:
    """Return a label cut to a length that leaves room for the plot."""
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"
