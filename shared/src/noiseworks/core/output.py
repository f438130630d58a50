"""What commands read line by line and what they leave: files and folders of results.

A command calls `check_file` (or `check_folder` of `core.artifacts`) before any work, and writes at its end, whole
or not at all:

    check_folder(out, TIMES, sources=(model,))
    ...
    with results(out, TIMES, {"model": model}) as folder:
        write_rows(folder / "metrics.csv", rows)

The module imports nothing heavy.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, atomic_directory, atomic_write, check_writable
from noiseworks.core.errors import InputError, NonFiniteError

# Endings of files that hold one text a line, or rows; a text that ends so is taken for a file's name.
LINE_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".md", ".yaml", ".yml")


def check_file(
    path: str | Path, suffixes: Sequence[str] = (), *, sources: Iterable[str | Path | None] = ()
) -> Path:
    """Return `path` as a file that may be written; to be called before any work.

    Args:
        path: The file; missing folders above it will be made.
        suffixes: Endings that are allowed, such as ".png"; any by default.
        sources: Files that the work reads, or other names, or None.

    Raises:
        InputError: When it is a folder or no regular file, cannot be written, ends otherwise or is a source.
    """
    path = Path(path)
    if path.name in ("", "..") or os.path.isdir(path):
        raise InputError(f"the output file {str(path)!r} is a folder; name a file in it")
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"the output file must end in {' or '.join(suffixes)}, got {path.name!r}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"the output file {path} is a device or a pipe; name a file")
    check_writable(path.parent if os.path.isfile(path) else path)
    whole = os.path.realpath(path)
    for source in sources:
        if source is not None and os.path.realpath(source) == whole:
            raise InputError(f"the output file {path} would overwrite its source; name another file")
    return path


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: When it cannot be read, or is no UTF-8 text (which a file of zeros is not either).
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise InputError(f"{path} is no UTF-8 text (zero at character {text.index(chr(0))})")
    return text


def lines_of(source: str, what: str = "prompt") -> list[str]:
    """Return the lines of a file that are not blank, or the one text that `source` is.

    Args:
        source: Name of a file of any kind with one text a line, or a text.
        what: What a line is, for the messages.

    Raises:
        InputError: When it is a folder or a missing file's name, holds no text, or is not UTF-8.
    """
    try:
        is_file, is_folder = os.path.isfile(source), os.path.isdir(source)
    except ValueError:
        is_file = is_folder = False
    if is_folder and source.strip():
        raise InputError(f"{source} is a folder; give a {what}, or a text file with one a line")
    if not is_file and "\n" not in source and source.strip().lower().endswith(LINE_SUFFIXES):
        raise InputError(f"no file {source}; give a {what}, or a text file with one a line")
    lines = read_text(source).split("\n") if is_file else [source]
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"no {what} in {source!r}; give one, or a text file with one a line")
    return found


def plain(value: Any, name: str = "result") -> Any:
    """Return a value as JSON has it: dataclasses and mappings as dictionaries, paths as text, tensors as lists.

    Args:
        value: What a command returns or writes.
        name: Of the value, for the message.

    Raises:
        NonFiniteError: When a number is NaN or infinite, which JSON does not have.
    """
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), name)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name), f"{name}.{field.name}") for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), name)
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(
            f"{name} is {value}: the model or its input is not finite, so there is no result"
        )
    return value


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return a value as valid JSON with a line end.

    Raises:
        NonFiniteError: When a number is NaN or infinite.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as a JSON file, atomically.

    Raises:
        NonFiniteError: When a number is NaN or infinite.
    """
    atomic_write(path, json_text(value))


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table atomically: a `.csv` file, or one JSON object a line where the name ends otherwise.

    Args:
        path: The file.
        rows: Records with the same keys.

    Raises:
        NonFiniteError: When a number is NaN or infinite, except in CSV.
    """
    rows = list(rows)
    if Path(path).suffix != ".csv":
        return atomic_write(path, "".join(json_text(row, indent=None) for row in rows))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    return atomic_write(path, text.getvalue())


@contextmanager
def results(out: str | Path, kind: FolderKind, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder for a command's results, which appears whole, with its settings, when the block ends.

    Args:
        out: The folder to make or replace; checked with `check_folder` before the work.
        kind: What it is; its mark holds the settings.
        settings: What the run was, as plain values; may be added to in the block.

    Yields:
        The temporary folder in which the files are written.

    Raises:
        InputError: When anything else stands there.
    """
    with atomic_directory(out, kind) as folder:
        yield folder
        write_json(folder / kind.mark, {"kind": kind.name, **settings})


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """Show a bar on the standard error, where that is a terminal.

    Args:
        title: What is going on.

    Yields:
        What is called with (done, in all), and with a new title where there is one.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)

        def show(done: int, total: int, text: str | None = None) -> None:
            bars.update(task, completed=done, total=total, description=text or title)

        yield show
