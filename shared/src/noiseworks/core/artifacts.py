"""Atomic files and the artifact format: a directory with `config.json` and `model.safetensors`.

Whatever a method learns (coefficients, masks, plans) is saved in this form. Every write goes to a temporary
name beside the target and is renamed, so a reader sees the old version, the new one or nothing.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1


def check_writable(path: str | Path) -> Path:
    """Return `path` as a directory that can be created or written, without creating it.

    Raises:
        InputError: When it is a file, or no existing parent may be written.
    """
    path = Path(path)
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"the output folder {path} cannot be made: {parent} is a file; name another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"the output folder {path} cannot be written: no permission on {parent}; name another folder"
        )
    return path


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Write a file so that it is either the old version or the whole new one, also after a kill.

    Args:
        path: The file; missing parent directories are created.
        data: Text (written as UTF-8) or bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary directory that takes the place of `path` when the block ends without an error.

    Args:
        path: The directory to make or replace.

    Yields:
        The temporary directory, beside `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_artifact(
    path: str | Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, "Tensor"]
) -> None:
    """Write an artifact directory atomically.

    Args:
        path: The directory to make or replace.
        kind: What the artifact is, for example `"linear-ag/coefficients"`; checked by `load_artifact`.
        config: JSON-serialisable settings.
        tensors: Named tensors; moved to the CPU and made contiguous.
    """
    from safetensors.torch import save_file

    with atomic_directory(path) as folder:
        record = {"kind": kind, "format_version": FORMAT_VERSION, **config}
        (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n")
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS_NAME)


def load_artifact(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Read an artifact directory that `save_artifact` wrote.

    Args:
        path: The directory.
        kind: The kind that the caller expects.

    Returns:
        The settings (without `kind` and `format_version`) and the tensors, on the CPU.

    Raises:
        ArtifactError: When the directory is missing or corrupt, or of another kind or version.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not (path / CONFIG_NAME).is_file():
        raise ArtifactError(f"{path} holds no {CONFIG_NAME}: expected an artifact of kind {kind!r}")
    try:
        config = json.loads((path / CONFIG_NAME).read_text())
        tensors = load_file(path / WEIGHTS_NAME)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"the artifact {path} is corrupt or incomplete ({error}); make it again"
        ) from error
    found, version = config.pop("kind", None), config.pop("format_version", None)
    if found != kind:
        raise ArtifactError(f"{path} is an artifact of kind {found!r}, expected {kind!r}")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r}, this release reads {FORMAT_VERSION}; redo it"
        )
    return config, tensors
