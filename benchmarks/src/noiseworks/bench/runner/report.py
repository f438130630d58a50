"""The report: one HTML file that needs nothing else, made from the results document."""

import base64
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from noiseworks.bench.claims import Target
from noiseworks.bench.runner.display import (
    effect,
    estimate_text,
    number,
    outcome_word,
    rivals_text,
    threshold_text,
)
from noiseworks.bench.runner.judge import no_effect_value
from noiseworks.bench.runner.plots import claim_plots
from noiseworks.core.artifacts import atomic_write

REPORT_NAME = "report.html"
IMAGES_PER_ARM = 24
MIME_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".gif": "image/gif"}
GLYPH_WIDTH, GLYPH_HEIGHT = 180.0, 22.0


def write_report(document: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` into the output folder and return its path.

    Args:
        document: The content of `results.json`.
        out: The output folder, which holds the images that the document names.
    """
    path = out / REPORT_NAME
    atomic_write(path, render(document, out))
    return path


def render(document: Mapping[str, Any], out: Path) -> str:
    """Return the report's HTML."""
    from jinja2 import Environment, PackageLoader

    templates = Environment(
        loader=PackageLoader("noiseworks.bench.runner"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.globals.update(
        effect=effect,
        estimate_text=estimate_text,
        number=number,
        outcome_word=outcome_word,
        rivals_text=rivals_text,
        threshold_text=threshold_text,
    )
    claims = [
        {
            **claim,
            "targets": [{**target, "glyph": _glyph(target)} for target in _judged_targets(claim)],
            "plots": claim_plots(claim),
            "gallery": _gallery(claim, out),
        }
        for claim in document["claims"]
    ]
    counts = Counter(outcome_word(claim) for claim in claims)
    template = templates.get_template("report.html.j2")
    return template.render(document=document, claims=claims, counts=counts)


def _judged_targets(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [target for target in claim["targets"] if "estimate" in target]


def _glyph(target: Mapping[str, Any]) -> dict[str, float]:
    """Return the x positions of the small interval drawing: sides, marks, interval."""
    neutral = no_effect_value(Target(**{field.name: target[field.name] for field in fields(Target)}))
    low, high = target["interval"]
    marks = (low, high, target["threshold"], neutral, target["estimate"])
    margin = 0.12 * ((max(marks) - min(marks)) or max(abs(marks[0]), 1.0))
    start, end = min(marks) - margin, max(marks) + margin

    def place(value: float) -> float:
        return round(GLYPH_WIDTH * (value - start) / (end - start), 2)

    threshold = place(target["threshold"])
    higher = target["better"] == "higher"
    return {
        "width": GLYPH_WIDTH,
        "height": GLYPH_HEIGHT,
        "middle": GLYPH_HEIGHT / 2,
        "good_start": threshold if higher else 0.0,
        "good_width": round(GLYPH_WIDTH - threshold if higher else threshold, 2),
        "threshold": threshold,
        "neutral": place(neutral),
        "low": place(low),
        "high": place(high),
        "estimate": place(target["estimate"]),
    }


def _gallery(claim: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Return the first seed's images of every arm as data addresses; files that are gone are left out."""
    rows = []
    for arm in claim["arms"]:
        runs = claim["measurements"].get(arm["name"], [])
        paths = {title: out / name for title, name in runs[0]["images"].items()} if runs else {}
        images = [
            {"title": title, "data": _data_address(path)}
            for title, path in list(paths.items())[:IMAGES_PER_ARM]
            if path.is_file() and path.suffix in MIME_TYPES
        ]
        if images:
            rows.append({"label": arm["label"], "seed": runs[0]["seed"], "images": images})
    return rows


def _data_address(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{MIME_TYPES[path.suffix]};base64,{content}"
