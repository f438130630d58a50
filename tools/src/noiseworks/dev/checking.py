"""Checks one package: style, its own tests, and the workspace's tests about it, in about a minute."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from noiseworks.core.errors import InputError
from noiseworks.dev.workspace import check_slug, root_of

TESTS = (
    "test_commands.py",
    "test_contracts.py",
    "test_claims.py",
    "test_imports.py",
    "test_package_rooms.py",
)
TESTS += ("test_readmes.py", "test_source_rules.py")


@dataclass(frozen=True)
class Checked:
    """What was run, and whether one of it failed.

    Attributes:
        passed: The steps that passed.
        failed: The steps that failed; empty when all is well.
    """

    passed: tuple[str, ...]
    failed: tuple[str, ...]


def check(slug: str) -> Checked:
    """Check one package.

    Args:
        slug: The folder's name below `packages/`.

    Returns:
        The steps that passed and failed; their output goes to the terminal. A failed step ends with status 1.

    Raises:
        InputError: When there is no such package.
    """
    check_slug(slug)
    root = root_of(Path.cwd())
    package = root / "packages" / slug
    if not (package / "pyproject.toml").is_file():
        raise InputError(f"no package {slug} below {root / 'packages'}; lay one with noiseworks-dev new")
    python = (sys.executable, "-m")
    tests = (*python, "pytest", "-q", "-n", "0")
    own = sorted(str(path) for path in (package / "tests").glob("test_*.py"))
    steps = {
        "style": (*python, "ruff", "check", str(package)),
        "format": (*python, "ruff", "format", "--check", str(package)),
    }
    if own:  # without a file pytest would run all that there are
        steps["own tests"] = (*tests, *own)
    steps["tests of the workspace"] = (*tests, "-k", slug, *(str(root / "tests" / name) for name in TESTS))
    environment = {**os.environ, "NOISEWORKS_METHODS": slug}
    ended = {
        name: subprocess.run(step, cwd=root, env=environment, check=False).returncode
        for name, step in steps.items()
    }
    return Checked(
        tuple(name for name, status in ended.items() if status == 0),
        tuple(name for name, status in ended.items() if status != 0),
    )
