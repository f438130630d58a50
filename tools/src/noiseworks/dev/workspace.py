"""Where the workspace is, and the lists of its members in the root's pyproject.toml."""

import re
from pathlib import Path

from noiseworks.core.errors import InputError

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# The lines of the two lists that hold one entry a method.
SOURCE = re.compile(r"^noiseworks-[a-z0-9-]+ = \{ workspace = true \}$")
DEV = re.compile(r'^    "noiseworks-[a-z0-9-]+\[bench\]",$')


def root_of(folder: Path) -> Path:
    """Return the workspace that holds a folder.

    Raises:
        InputError: When there is none.
    """
    for path in (folder, *folder.parents):
        if (path / "uv.lock").is_file() and (path / "packages").is_dir():
            return path
    raise InputError(f"{folder} is not inside the workspace; go to the folder that holds uv.lock")


def check_slug(slug: str) -> None:
    """Refuse a name that no package can have.

    Raises:
        InputError: Naming it.
    """
    if not SLUG.fullmatch(slug):
        raise InputError(f"a slug is lower-case words with hyphens between, such as linear-ag, got {slug!r}")


def with_member(pyproject: str, slug: str) -> str:
    """Return the root's pyproject.toml with a method in both lists, which are sorted."""
    lines = pyproject.splitlines()
    lines = _with_line(lines, SOURCE, f"noiseworks-{slug} = {{ workspace = true }}")
    lines = _with_line(lines, DEV, f'    "noiseworks-{slug}[bench]",')
    return "\n".join(lines) + "\n"


def _with_line(lines: list[str], pattern: re.Pattern, line: str) -> list[str]:
    places = [place for place, text in enumerate(lines) if pattern.match(text)]
    block = sorted({*(lines[place] for place in places), line})
    first = places[0]
    kept = [text for place, text in enumerate(lines) if place not in places]
    return [*kept[:first], *block, *kept[first:]]
