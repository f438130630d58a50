"""The report: one HTML file that needs nothing else, made from the results document."""

import base64
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.bench.runner.display import (
    VERDICT_STYLE,
    count_verdicts,
    decided_by,
    estimate_text,
    headline,
    number,
    outcome_word,
    passed_text,
    rivals_text,
    target_of,
    threshold_text,
)
from noiseworks.bench.runner.plots import claim_plots
from noiseworks.bench.runner.tables import grouped, published_verdicts
from noiseworks.bench.runner.verdicts import no_effect_value
from noiseworks.core.artifacts import atomic_write

REPORT_NAME = "report.html"
JUDGING = ("laptop", "full")
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
    templates.filters["slug"] = lambda word: word.lower().replace(" ", "-")
    templates.globals.update(
        estimate_text=estimate_text,
        headline=headline,
        number=number,
        outcome_word=outcome_word,
        passed_text=passed_text,
        rivals_text=rivals_text,
        threshold_text=threshold_text,
    )
    known = published_verdicts()
    claims = {claim["method"]: _shown(claim, known, out) for claim in document["claims"]}
    families = [
        {"title": title, "id": f"family-{number}", "claims": [claims[slug] for slug in slugs]}
        for number, (title, slugs) in enumerate(grouped({*claims}).items())
    ]
    shown = [claim["judged"] for claim in claims.values() if claim["judged"]]
    counts = Counter(outcome_word(claim) for claim in claims.values())
    return templates.get_template("report.html.j2").render(
        document=document,
        claims=list(claims.values()),
        families=families,
        counts={word: counts[word] for word in VERDICT_STYLE if counts[word]},
        looks=document["scale"] not in JUDGING,
        judged=count_verdicts(shown),
    )


def _shown(claim: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """Return a claim with everything that its part of the page shows."""
    targets = [{**target, "glyph": _glyph(target)} for target in _judged_targets(claim)]
    decisive = decided_by(claim) or next(iter(targets), None)
    return {
        **claim,
        "targets": targets,
        "decisive": next((target for target in targets if target["name"] == decisive["name"]), None)
        if decisive
        else None,
        "judged": {"status": "judged", "void_reason": None, **known[claim["method"]]}
        if claim["method"] in known
        else None,
        "plots": claim_plots(claim),
        "pictures": _pictures(claim, out),
    }


def _judged_targets(claim: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [target for target in claim["targets"] if "estimate" in target]


def _glyph(target: Mapping[str, Any]) -> dict[str, float]:
    """Return the x positions of the small interval drawing: sides, marks, interval."""
    neutral = no_effect_value(target_of(target))
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


def _pictures(claim: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    """Return the first seed's pictures as data addresses: a grid of those that several arms have, then the others.

    The grid's rows are the titles (prompts, tasks), its columns the arms, so that equal requests lie side by side.
    Files that are gone are left out.
    """
    found: dict[str, dict[str, str]] = {}
    seed = None
    for arm in claim["arms"]:
        runs = claim["measurements"].get(arm["name"], [])
        if not runs:
            continue
        seed = runs[0]["seed"]
        for title, name in list(runs[0]["images"].items())[:IMAGES_PER_ARM]:
            path = out / name
            if path.is_file() and path.suffix in MIME_TYPES:
                found.setdefault(title, {})[arm["label"]] = _data_address(path)
    if not found:
        return None
    shared = {title: cells for title, cells in found.items() if len(cells) > 1}
    columns = [
        arm["label"] for arm in claim["arms"] if any(arm["label"] in cells for cells in shared.values())
    ]
    return {
        "seed": seed,
        "columns": columns,
        "rows": [
            {"title": title, "cells": [cells.get(label) for label in columns]}
            for title, cells in shared.items()
        ],
        "single": [
            {"title": title if title.startswith(label) else f"{label}: {title}", "data": data}
            for title, cells in found.items()
            if title not in shared
            for label, data in cells.items()
        ],
    }


def _data_address(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{MIME_TYPES[path.suffix]};base64,{content}"
