"""The distributions of the workspace, read from their pyproject files."""

import os
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Member:
    """One distribution of the workspace."""

    folder: Path

    @cached_property
    def pyproject(self) -> dict:
        return tomllib.loads((self.folder / "pyproject.toml").read_text())

    @property
    def name(self) -> str:
        return self.pyproject["project"]["name"]

    @property
    def is_method(self) -> bool:
        return self.folder.parent.name == "packages"

    @property
    def modules(self) -> list[str]:
        """Import names that the wheel ships, for example `["noiseworks.core", "noiseworks.kits"]`."""
        names = self.pyproject["tool"]["uv"]["build-backend"]["module-name"]
        return [names] if isinstance(names, str) else names

    @property
    def sources(self) -> list[Path]:
        return sorted((self.folder / "src").rglob("*.py"))

    @property
    def scripts(self) -> dict[str, str]:
        return self.pyproject["project"].get("scripts", {})

    def entry_points(self, group: str) -> dict[str, str]:
        return self.pyproject["project"].get("entry-points", {}).get(group, {})

    def module_of(self, file: Path) -> str:
        """Return the import name of a source file."""
        parts = file.relative_to(self.folder / "src").with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def workspace() -> tuple[Member, ...]:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    folders = sorted(
        path for pattern in patterns for path in ROOT.glob(pattern) if (path / "pyproject.toml").exists()
    )
    return tuple(Member(folder) for folder in folders)


def chosen() -> tuple[Member, ...]:
    """Return the distributions that are tested one by one: all, or without the methods not in NOISEWORKS_METHODS."""
    names = os.environ.get("NOISEWORKS_METHODS")
    return tuple(
        member
        for member in workspace()
        if not (names and member.is_method) or member.folder.name in names.split(",")
    )
