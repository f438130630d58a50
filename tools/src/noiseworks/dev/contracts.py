"""Reads the packages' contracts, and types command lines warm: in this process, as the command would run them."""

import contextlib
import importlib.util
import io
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.kits.contracts import Contract


@cache
def contract_of(folder: Path) -> Contract:
    """Return the contract of a package's folder.

    Raises:
        InputError: When it has none.
    """
    file = folder / "tests" / "contract.py"
    if not file.exists():
        raise InputError(f"{folder} has no tests/contract.py")
    spec = importlib.util.spec_from_file_location(f"contract_of_{folder.name.replace('-', '_')}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONTRACT


@cache
def app_of(slug: str) -> Any:
    """Return the command line of an installed method."""
    (entry,) = entry_points(group="noiseworks.methods", name=slug)
    return entry.load()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def typed(app: Any, words: list[str], folder: Path) -> Done:
    """Run a command line in a folder, in this process, as its program would."""
    out, error, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            run(app, words)
    except SystemExit as stop:
        return Done(stop.code or 0, out.getvalue(), error.getvalue())
    finally:
        os.chdir(before)


def words_of(line: str, files: Mapping[str, Path | str]) -> list[str]:
    """Return the words of a contract's line; braces hold names, which may have dots and dashes."""
    for name, value in files.items():
        line = line.replace("{" + name + "}", shlex.quote(str(value)))
    return shlex.split(line)


def written(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its contents; folders count as files without any."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def same(a: Any, b: Any) -> bool:
    """Return whether two states of numbers, texts, tensors, mappings and lists are equal, bit for bit."""
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "dtype") and hasattr(a, "shape"):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return bool(a == b)
