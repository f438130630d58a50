"""The generated part of the site: a page for each method, the API reference and the contribution guide.

mkdocs calls the functions below as a hook. A method's page is its package's README; the line
`<!-- results -->` in a page is replaced by the committed results (on a method's page: of that method alone).
"""

import os
import re
from collections.abc import Mapping
from html import escape
from itertools import cycle
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from noiseworks.bench.runner.plots import claim_plots
from noiseworks.bench.runner.tables import grouped, overview_markdown, read_claims, results_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RESULTS_LINE = re.compile(r"^<!-- results -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
# The repository shows a method's README in the place of its page.
METHOD_LINK = re.compile(r"\]\((?:\.\./)+packages/([\w-]+)/README\.md")
# Pages whose tables need the room of the list of contents, and the number of columns that a phone has no room for.
WIDE, WIDE_COLUMNS = ("index.md", "choose.md", "results.md"), 4
STUB_LINE = re.compile(r"^from \.([\w.]+) import (\w+) as ", re.MULTILINE)
MEMBERS = {"core": ROOT / "shared", "bench": ROOT / "benchmarks"}
MEMBERS |= {folder.parent.name: folder.parent for folder in sorted(ROOT.glob("packages/*/pyproject.toml"))}
# Repository file -> page of the site, for links between READMEs.
PAGES = {"CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
PAGES |= {f"packages/{slug}/README.md": f"methods/{slug}.md" for slug in MEMBERS}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the method pages and the reference to the navigation."""
    families = grouped({slug for slug in MEMBERS if slug not in ("core", "bench")})
    methods = [{title: [{slug: f"methods/{slug}.md"} for slug in slugs]} for title, slugs in families.items()]
    references = [f"reference/{slug}.md" for slug in MEMBERS]
    config.nav[3:3] = [{"Methods": methods}]
    config.nav.append({"API reference": [*references[:2], {"Methods' names": references[2:]}]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"contributing.md": from_repository(ROOT / "CONTRIBUTING.md", "contributing.md")}
    for slug, folder in MEMBERS.items():
        pages[f"reference/{slug}.md"] = reference(slug, folder)
        if slug not in ("core", "bench"):
            pages[f"methods/{slug}.md"] = from_repository(folder / "README.md", f"methods/{slug}.md")
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the committed results where a page asks for them, and lead from a method's README to its page.

    Pages of wide tables go without a list of contents.
    """
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    above = PurePosixPath(page.file.src_uri).parent
    markdown = METHOD_LINK.sub(lambda link: f"]({os.path.relpath(f'methods/{link[1]}.md', above)}", markdown)
    return RESULTS_LINE.sub(lambda _: results(page.file.src_uri), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let each cell of a wide table say its column's name, which stands above it where the screen is narrow."""
    return TABLE.sub(lambda match: labelled(match[0]), html)


def labelled(table: str) -> str:
    """Return a table whose cells know their column's heading; one of few columns as it is."""
    labels = [
        re.sub("<[^>]+>", "", heading) for heading in re.findall(r"<th\b[^>]*>(.*?)</th>", table, re.DOTALL)
    ]
    if len(labels) < WIDE_COLUMNS:
        return table
    columns = cycle(labels)
    cells = re.sub(r"<td\b", lambda _: f'<td data-label="{next(columns)}"', table)
    return cells.replace("<table", "<table data-stacked", 1)


def results(uri: str) -> str:
    """Return the committed results: one row a method at home, one a target elsewhere, a method's own on its page."""
    if uri == "index.md":
        return overview_markdown(RESULTS, page="methods/{}.md")
    if uri.startswith("methods/"):
        slug = Path(uri).stem
        return f"{results_markdown(RESULTS, method=slug)}\n{figures(slug)}"
    return results_markdown(RESULTS)


def figures(slug: str) -> str:
    """Return a method's measured figures over its arms as drawings, one a metric that a target judges."""
    claims = [claim for claim in read_claims(RESULTS) if claim["method"] == slug]
    drawn = [
        f"<figure><figcaption>{escape(plot['caption'])}</figcaption>{plot['svg']}</figure>"
        for claim in claims
        for plot in claim_plots(claim | {"columns": judged_columns(claim)})
        if plot["svg"]
    ]
    return f'<div class="plots">{"".join(drawn)}</div>\n' if drawn else ""


def judged_columns(claim: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a claim that one of its targets judges."""
    metrics = {target["metric"] for target in claim["targets"]}
    return {metric: label for metric, label in claim["columns"].items() if metric in metrics}


def reference(slug: str, folder: Path) -> str:
    """Return a page with the docstrings of a method's public names, or of every module of the core and the bench.

    Search ranks it below the guides.
    """
    source = folder / "src"
    blocks = [f"::: {name}\n" for name in public_names(source)]
    if not blocks:
        for file in sorted(source.rglob("*.py")):
            parts = file.relative_to(source).with_suffix("").parts
            if not any(part.startswith("_") for part in parts) and file.name not in ("cli.py", "claim.py"):
                blocks.append(f"::: {'.'.join(parts)}\n")
    title = {"core": "noiseworks-core", "bench": "noiseworks-bench"}.get(slug, f"noiseworks-{slug}")
    return f"---\nsearch:\n  boost: 0.5\n---\n\n# {title}\n\n" + "\n".join(blocks)


def public_names(source: Path) -> list[str]:
    """Return the import paths of the names that a package's stub lists; none where it has no stub."""
    stubs = sorted(source.glob("noiseworks/*/__init__.pyi"))
    lines = [line for stub in stubs for line in STUB_LINE.findall(stub.read_text())]
    package = ".".join(stubs[0].parent.relative_to(source).parts) if stubs else ""
    return [f"{package}.{module}.{name}" for module, name in lines]


def from_repository(file: Path, uri: str) -> str:
    """Return a repository page with its links turned into links between pages of the site."""

    def rewrite(match: re.Match) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (file.parent / target).resolve().relative_to(ROOT).as_posix()
        page = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path)
        if page is None or path.endswith("-claim.svg"):  # the page draws the claim itself, with the results
            return f"`{path}`" if not image else ""
        return f"{image}[{text}]({os.path.relpath(page, PurePosixPath(uri).parent)}{anchor})"

    return LINK.sub(rewrite, file.read_text())
