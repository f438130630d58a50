"""Lays the rooms of a new method: a package that runs and passes every test of the workspace from the start."""

import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.families import FAMILIES
from noiseworks.dev.workspace import check_slug, root_of, with_member

ENDING = ".txt"  # of the skeleton's files, so that nothing takes them for code of this package


def new(slug: str, *, family: str, paper: str, summary: str | None = None) -> dict[str, Any]:
    """Lay `packages/<slug>` and list it in the root's pyproject.toml.

    Args:
        slug: The method's name, lower-case words with hyphens between.
        family: The group of methods that it belongs to, as in `noiseworks list`.
        paper: Title, venue and arXiv number, such as "A Paper (ICLR 2026, arXiv 2601.01234)".
        summary: One sentence for `--help` and the overview; by default a placeholder to be replaced.

    Returns:
        The new files, and what to type next.

    Raises:
        InputError: When the slug is no slug or taken, the family is unknown, or the paper has no arXiv number.
    """
    check_slug(slug)
    check_choice("family", family, tuple(FAMILIES))
    root = root_of(Path.cwd())
    target = root / "packages" / slug
    if target.exists():
        raise InputError(f"{target} exists; choose another slug or go on there")
    if "arxiv" not in paper.lower():
        raise InputError(f"paper names no arXiv number: {paper!r}; end it like (ICLR 2026, arXiv 2601.01234)")
    module = slug.replace("-", "_")
    words = {
        "SLUG": slug,
        "MODULE": module,
        "TITLE": slug.replace("-", " ").capitalize(),
        "FAMILY": family,
        "PAPER": paper,
        "SUMMARY": summary or f"{slug}: blends two tensors.",
    }
    skeleton = files("noiseworks.dev") / "skeleton"
    made = target.with_name(f".{slug}.new")
    shutil.rmtree(made, ignore_errors=True)
    for file in sorted(Path(str(skeleton)).rglob(f"*{ENDING}")):
        place = str(file.relative_to(str(skeleton))).removesuffix(ENDING)
        place = place.replace("__module__", module).replace("__tests__", "tests")
        atomic_write(made / place, filled(file.read_text(), words))
    atomic_write(made / f"src/noiseworks/{module}/py.typed", "")
    shutil.copy(root / "LICENSE", made / "LICENSE")
    os.rename(made, target)
    # The order of imports and the length of lines depend on the package's name.
    for step in (("check", "--fix"), ("format",)):
        command = (sys.executable, "-m", "ruff", *step, "--quiet", str(target))
        subprocess.run(command, cwd=root, check=True)
    atomic_write(root / "pyproject.toml", with_member((root / "pyproject.toml").read_text(), slug))
    return {
        "files": [str(path.relative_to(root)) for path in sorted(target.rglob("*")) if path.is_file()],
        "next": f"uv lock && uv sync && uv run noiseworks-dev check {slug}",
    }


def filled(text: str, words: dict[str, str]) -> str:
    """Return a text with its <<NAME>> replaced."""
    for name, word in words.items():
        text = text.replace(f"<<{name}>>", word)
    return text
