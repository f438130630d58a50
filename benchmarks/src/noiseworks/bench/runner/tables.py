"""What is shown of the committed results: tables for README and docs, the forest plot, the verdicts in reports."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from noiseworks.bench.runner.describe import describe_claims
from noiseworks.bench.runner.discovery import CLAIM_GROUP, installed
from noiseworks.bench.runner.display import estimate_text, outcome_word, passed_text, threshold_text
from noiseworks.bench.runner.forest import forest
from noiseworks.bench.runner.plots import standalone
from noiseworks.bench.runner.results import read_folder
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.core.families import COSTS, by_family, cost_of, family_of

START, END = "<!-- results:start -->", "<!-- results:end -->"
HEADER = (
    "Method",
    "Claim",
    "Measured",
    "Promised",
    "Ours, 95 % interval",
    "Target",
    "Claim's verdict",
    "Scale",
)
OVERVIEW = ("Method", "For what", "Training", "Ours", "Verdict on its targets")
JUDGED_NAME = "judged.json"


def read_claims(folder: Path | str) -> list[dict[str, Any]]:
    """Return the claims of every results file in a folder.

    Raises:
        InputError: When the folder is missing, a file has another schema version, or holds a tuning run.
    """
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}; name a folder of results files")
    claims = [claim for document in read_folder(folder) for claim in document["claims"]]
    tuned = [claim["method"] for claim in claims if claim.get("scale") == "tune"]
    if tuned:
        names = ", ".join(tuned)
        raise InputError(f"{names} in {folder}: tuning runs are no results; name a folder of judged ones")
    return claims


def results_markdown(folder: Path | str, method: str | None = None) -> str:
    """Return the markdown table of every results file in a folder, a row a target.

    Args:
        folder: A folder of results files, such as `benchmarks/results` or the `results` folder of a run.
        method: Only this method; its table leaves out the method, the claim and the claim's verdict.

    Returns:
        The table, or a sentence when there is no result.

    Raises:
        InputError: When the folder is missing or a file has another schema version.
    """
    claims = [claim for claim in read_claims(folder) if method in (None, claim["method"])]
    if not claims:
        return "No results yet."
    rows = [HEADER]
    for claim in claims:
        for index, target in enumerate(claim["targets"]):
            first = index == 0
            rows.append(
                (
                    f"`{claim['method']}`" if first else "",
                    claim["statement"] if first else "",
                    target["name"] + (" (guard)" if target["guard"] else ""),
                    threshold_text(target),
                    estimate_text(target),
                    target.get("verdict", ""),
                    f"**{outcome_word(claim)}**, {passed_text(claim)}" if first else "",
                    claim["scale"],
                )
            )
    if method is not None:
        rows = [row[2:6] + row[7:] for row in rows]
    return markdown(rows)


def overview_markdown(folder: Path | str, page: str = "packages/{}/README.md") -> str:
    """Return one table a family with one row a method; a method without a result of its claim's version is a draft.

    Args:
        folder: A folder of results files.
        page: Where a method's page is, with a place for the method.

    Raises:
        InputError: When the folder is missing or a file has another schema version.
    """
    claims = {claim["method"]: claim for claim in read_claims(folder)}
    versions = {
        one.source.method: one.claim.version
        for one in describe_claims(list(installed(CLAIM_GROUP).values()), "laptop")
        if one.claim
    }
    parts = []
    for title, slugs in grouped({*claims, *installed(CLAIM_GROUP)}).items():
        rows = [
            OVERVIEW,
            *(_overview_row(slug, claims.get(slug), versions.get(slug), page.format(slug)) for slug in slugs),
        ]
        parts.append(f"### {title}\n\n{markdown(rows)}")
    return "\n".join(parts)


def _overview_row(
    slug: str, claim: Mapping[str, Any] | None, version: int | None, page: str
) -> tuple[str, ...]:
    about = _distribution(slug)
    cost = cost_of(about)
    summary = about.metadata["Summary"].rstrip(".") if about else ""
    facts = (f"[{slug}]({page})", summary, COSTS[cost] if cost else "")
    if claim is None or not claim["targets"]:
        return (*facts, "", "draft")
    first = claim["targets"][0]
    ours = f"{first['name']} {estimate_text(first).partition(' ')[0]}"
    verdict = f"**{outcome_word(claim)}**, {passed_text(claim)}"
    if version not in (None, claim["version"]):
        verdict = f"draft; version {claim['version']}: {verdict}"
    return (*facts, ours, verdict)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table whose first row is the header."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)


def grouped(methods: set[str]) -> dict[str, list[str]]:
    """Return methods by the titles of their families."""
    return by_family((slug, family_of(_distribution(slug))) for slug in methods)


def _distribution(slug: str) -> Distribution | None:
    try:
        return distribution(f"noiseworks-{slug}")
    except PackageNotFoundError:
        return None


def table(folder: Path = Path("benchmarks/results"), *, method: str | None = None) -> str:
    """Print the markdown table of the results files in a folder.

    Args:
        folder: A folder of results files.
        method: Only this method.

    Returns:
        The table.

    Raises:
        InputError: When the folder is missing or a file has another schema version.
    """
    return results_markdown(folder, method).rstrip()


def publish(root: Path = Path()) -> dict[str, Any]:
    """Write everything that is shown of the committed results: run it after committing results.

    That is the overview in `README.md` (between its lines `<!-- results:start -->` and `<!-- results:end -->`), the
    forest plot `docs/images/results.svg`, the verdicts that reports of other scales show beside their figures, and a
    drawing of its first target, `docs/images/<slug>-claim.svg`, for each judged method whose page shows it.

    Args:
        root: The workspace.

    Returns:
        The written files.

    Raises:
        InputError: When the workspace has no results, or its README no place for them.
    """
    folder, page = root / "benchmarks/results", root / "README.md"
    claims = read_claims(folder)
    if not page.is_file():
        raise InputError(f"no page {page} to write the overview into; name the workspace")
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"{page} lacks the lines {START} and {END}; put them where the overview belongs")
    judged = {claim["method"]: claim for claim in claims if claim["status"] == "judged"}
    families = {title: [judged[slug] for slug in slugs] for title, slugs in grouped({*judged}).items()}
    written = {
        page: f"{before}{start}\n{overview_markdown(folder)}{end}{after}",
        root / "docs/images/results.svg": forest(families),
        root / "benchmarks/src/noiseworks/bench" / JUDGED_NAME: json.dumps(verdicts(judged), indent=1) + "\n",
    }
    for slug, claim in sorted(judged.items()):
        own, picture = root / "packages" / slug / "README.md", f"docs/images/{slug}-claim.svg"
        if own.is_file() and f"(../../{picture})" in own.read_text():
            written[root / picture] = standalone(claim)
    for path, text in written.items():
        atomic_write(path, text)
    return {"wrote": [str(path.relative_to(root)) for path in written]}


def verdicts(judged: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what a report of another scale says of a judged result: scale, version, verdict, its first target."""
    return {
        slug: {
            "scale": claim["scale"],
            "version": claim["version"],
            "verdict": claim["verdict"],
            "passed": passed_text(claim),
            "effect": estimate_text(claim["targets"][0]),
        }
        for slug, claim in sorted(judged.items())
    }


@cache
def published_verdicts() -> dict[str, dict[str, Any]]:
    """Return the verdicts of the committed results that this release ships."""
    return json.loads(files("noiseworks.bench").joinpath(JUDGED_NAME).read_text())
