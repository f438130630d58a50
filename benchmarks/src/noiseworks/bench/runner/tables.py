"""The table of committed results, as markdown for README and docs."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from noiseworks.bench.runner.display import estimate_text, outcome_word, threshold_text
from noiseworks.bench.runner.results import read_folder
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError

START, END = "<!-- results:start -->", "<!-- results:end -->"
HEADER = ("Method", "Claim", "Measured", "Promised", "Ours, 95 % interval", "Verdict", "Scale")


def results_markdown(folder: Path | str, method: str | None = None) -> str:
    """Return the markdown table of every results file in a folder, a row a target.

    Args:
        folder: A folder of results files, such as `benchmarks/results` or the `results` folder of a run.
        method: Only this method; its table leaves out the method and the claim and shows every target's
            verdict.

    Returns:
        The table, or a sentence when there is no result.

    Raises:
        InputError: When the folder is missing or a file has another schema version.
    """
    if not Path(folder).is_dir():
        raise InputError(f"no folder {folder}; name a folder of results files")
    claims = [claim for document in read_folder(folder) for claim in document["claims"]]
    if method is not None:
        claims = [claim for claim in claims if claim["method"] == method]
    if not claims:
        return "No results yet."
    tuned = [claim["method"] for claim in claims if claim.get("scale") == "tune"]
    if tuned:
        raise InputError(
            f"{', '.join(tuned)} in {folder}: tuning runs are no results; name a folder of judged ones"
        )
    skipped = 2 if method is not None else 0
    lines = [HEADER[skipped:], ("---",) * (len(HEADER) - skipped)]
    for claim in claims:
        for index, target in enumerate(claim["targets"]):
            first = index == 0 and method is None
            verdict = outcome_word(claim) if first else target.get("verdict", claim["status"])
            row = (
                f"`{claim['method']}`" if first else "",
                claim["statement"] if first else "",
                target["name"] + (" (guard)" if target["guard"] else ""),
                threshold_text(target),
                estimate_text(target),
                f"**{verdict}**" if first else verdict,
                claim["scale"],
            )
            lines.append(row[skipped:])
    return (
        "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"
    )


def table(
    folder: Annotated[Path, Parameter(help="Folder of results files.")] = Path("benchmarks/results"),
    *,
    method: str | None = None,
    write: Path | None = None,
) -> str:
    """Print the markdown table of the results files in a folder, or put it into a page.

    Args:
        folder: A folder of results files.
        method: Only this method.
        write: A page such as `README.md`; the table replaces what stands between its lines
            `<!-- results:start -->` and `<!-- results:end -->`.

    Returns:
        The table, or which page it was written to.

    Raises:
        InputError: When the folder is missing, a file has another schema version, or the page is missing or
            lacks one of the two lines.
    """
    text = results_markdown(folder, method).rstrip()
    if write is None:
        return text
    if not write.is_file():
        raise InputError(f"no page {write} to write the table into; name a markdown file")
    page = write.read_text()
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"{write} lacks the lines {START} and {END}; put them where the table belongs")
    atomic_write(write, f"{before}{start}\n{text}\n{end}{after}")
    return f"wrote the table into {write}"
