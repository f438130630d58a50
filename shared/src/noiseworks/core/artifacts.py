"""Atomic files and the artifact format: a directory with `config.json` and `model.safetensors`.

Whatever a method learns (coefficients, masks, plans) is saved in this form. Every write goes to a temporary
name beside the target and takes its place in one step, so a reader sees the old version or the new one. Only a
folder of the same kind that holds nothing else is ever replaced: see `FolderKind` and `check_folder`.
"""

import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import ArtifactError, InputError, last_line

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1
# Of Linux, macOS and Windows alike; temporary names and the files of a folder need some of the whole.
LONGEST_NAME = 255
LONGEST_PATH = 4096 - 2 * LONGEST_NAME


@dataclass(frozen=True)
class FolderKind:
    """What tells a folder of one kind from every other, so that only its like is replaced.

    Attributes:
        name: What the key `kind` of the mark says, such as "linear-ag/coefficients"; None for a folder in a host
            library's format, which its files alone tell.
        files: Patterns of the paths of its files, as `fnmatch` reads them.
        mark: The JSON file that says the kind.
    """

    name: str | None
    files: tuple[str, ...] = (CONFIG_NAME, WEIGHTS_NAME)
    mark: str = CONFIG_NAME

    def stray(self, folder: Path) -> str | None:
        """Return what keeps an existing folder from being replaced: a phrase that goes on "it holds ...".

        Args:
            folder: The folder; an empty one holds nothing that could be lost.
        """
        if not any(folder.iterdir()):
            return None
        for root, folders, files in os.walk(folder):
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            for name in (*files, *links):
                path = Path(root, name).relative_to(folder).as_posix()
                if not any(fnmatchcase(path, pattern) for pattern in self.files):
                    return f"{path!r}"
            if not folders and not files:
                return f"the folder {Path(root).relative_to(folder).as_posix()!r}"
        if self.name is None:
            return None
        try:
            found = json.loads((folder / self.mark).read_text())["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"no {self.mark} that says {self.name!r}"
        return None if found == self.name else f"an artifact of kind {found!r}"


_HOST_NAMES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "model_index.json",
    "scheduler_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "normalizer.json",
    "card.json",
)
# What `save_pretrained` of diffusers, transformers and the policies writes, in one folder or one a component.
# `pruned_denoiser.py` is what lets diffusers load a network of other sizes than its configuration can say.
HOST_FOLDER = FolderKind(None, (*_HOST_NAMES, *(f"*/{name}" for name in _HOST_NAMES), "*/pruned_denoiser.py"))


def check_writable(path: str | Path) -> Path:
    """Return `path` as a file or directory that can be created or written, without creating it.

    Raises:
        InputError: When it or what is above it is a file, when no existing parent may be written, or when no file
            system takes its name.
    """
    path = Path(path)
    if "\0" in str(path):
        raise InputError(f"the output {str(path)!r} has a NUL character in its name; choose another name")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise InputError(f"the name of the output is longer than {LONGEST_NAME} bytes; choose another name")
    if len(os.fsencode(path.absolute())) > LONGEST_PATH:
        raise InputError(f"the output's path is longer than {LONGEST_PATH} bytes; choose another name")
    parent = path
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"the output {path} cannot be made: {parent} is a file; choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"the output {path} cannot be written: no permission on {parent}; choose another name"
        )
    return path


def check_folder(
    path: str | Path, kind: str | FolderKind, *, sources: Iterable[str | Path | None] = ()
) -> Path:
    """Return `path` as a folder that may be made, or replaced without a loss; to be called before any work.

    Args:
        path: The folder that will be written with `atomic_directory` or `save_artifact`.
        kind: What will be written; a folder is replaced by its like only.
        sources: What the work reads: files, directories, other names of models, or None.

    Raises:
        InputError: When it cannot be written, is the current folder or one above it, holds anything else than
            such a folder does, or is or holds one of the sources.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise InputError(f"the output folder {str(path)!r} has no name of its own; name a folder to be made")
    check_writable(path)
    whole = Path(os.path.realpath(path))
    if Path.cwd().is_relative_to(whole):
        raise InputError(f"the output folder {path} is the current folder or above it; name another folder")
    for source in sources:
        if source is not None and Path(os.path.realpath(source)).is_relative_to(whole):
            raise InputError(
                f"the output folder {path} would replace its source {source}; name another folder"
            )
    _check_replaceable(path, kind)
    return path


def _check_replaceable(path: Path, kind: str | FolderKind) -> None:
    kind = FolderKind(kind) if isinstance(kind, str) else kind
    stray = kind.stray(path) if path.is_dir() else None
    if stray is not None:
        wanted = kind.name or "a model"
        raise InputError(
            f"the folder {path} exists and is not replaced: it holds {stray}, expected only {wanted}; "
            "name another folder"
        )


def _beside(path: Path) -> Path:
    """Return a new hidden name in the same folder."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Write a file so that it is either the old version or the whole new one, also after a kill.

    Args:
        path: The file; missing parent directories are created.
        data: Text (written as UTF-8) or bytes.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: str | Path, kind: str | FolderKind) -> Iterator[Path]:
    """Yield an empty temporary directory that takes the place of `path` when the block ends without an error.

    Args:
        path: The directory to make, or to replace by its like.
        kind: What is written.

    Yields:
        The temporary directory, beside `path`. Its files get the permissions that the umask gives new files.

    Raises:
        InputError: When `path` holds anything else than such a folder does, before and after the block.
    """
    check_folder(path, kind)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        mode = temporary.stat().st_mode & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # safetensors makes its files private
        _check_replaceable(path, kind)
        if path.exists():
            exchange(temporary, path)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def exchange(first: Path, second: Path) -> None:
    """Exchange two directories of one file system.

    One step on Linux, so that neither name is ever without one. Where the system has no such call, three renames.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None:
        here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if rename(here, os.fsencode(first), here, os.fsencode(second), both) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(first), None, str(second))
    aside = _beside(second)
    os.rename(second, aside)
    os.rename(first, second)
    os.rename(aside, first)


def save_artifact(
    path: str | Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, "Tensor"]
) -> None:
    """Write an artifact directory atomically.

    Args:
        path: The directory to make, or to replace when it is an artifact of the same kind and nothing else.
        kind: What the artifact is, for example `"linear-ag/coefficients"`; checked by `load_artifact`.
        config: JSON-serialisable settings.
        tensors: Named tensors; moved to the CPU and made contiguous.

    Raises:
        InputError: When another folder stands there.
    """
    from safetensors.torch import save_file

    with atomic_directory(path, kind) as folder:
        record = {"kind": kind, "format_version": FORMAT_VERSION, **config}
        (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n")
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS_NAME)


def read_json(path: str | Path, what: str = "file") -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        ArtifactError: When it cannot be read or holds no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is no {what}: it is missing, corrupt or incomplete ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactError(
            f"{path} is no {what}: it holds a JSON {type(found).__name__}, expected an object"
        )
    return found


def read_tensors(path: str | Path, *, loose: Iterable[str] = ("",)) -> dict[str, "Tensor"]:
    """Return the tensors of a safetensors file, on the CPU.

    Args:
        path: The file.
        loose: Beginnings of the names of tensors that may hold NaN; by default any may.

    Raises:
        ArtifactError: When it is missing, cut off or no such file, or a tensor holds NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"the tensors of {path} are corrupt or incomplete ({error}); make it again"
        ) from error
    for name, tensor in found.items():
        if not name.startswith(tuple(loose)) and bool(tensor.isnan().any()):
            raise ArtifactError(f"{name} in {path} holds NaN: it is of a run that failed; make it again")
    return found


def load_artifact(
    path: str | Path, kind: str, *, loose: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Read an artifact directory that `save_artifact` wrote.

    Args:
        path: The directory.
        kind: The kind that the caller expects.
        loose: Beginnings of the names of tensors that may hold NaN.

    Returns:
        The settings (without `kind` and `format_version`) and the tensors, on the CPU.

    Raises:
        ArtifactError: When the directory is missing or corrupt, of another kind or version, or holds NaN.
    """
    path = Path(path)
    if not (path / CONFIG_NAME).is_file():
        raise ArtifactError(f"{path} holds no {CONFIG_NAME}: expected an artifact of kind {kind!r}")
    config = read_json(path / CONFIG_NAME, f"artifact of kind {kind!r}")
    found, version = config.pop("kind", None), config.pop("format_version", None)
    if found != kind:
        raise ArtifactError(f"{path} is an artifact of kind {found!r}, expected {kind!r}")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version!r}, this release reads {FORMAT_VERSION}; redo it"
        )
    return config, read_tensors(path / WEIGHTS_NAME, loose=loose)


@contextmanager
def rebuilding(path: str | Path, what: str) -> Iterator[None]:
    """Refuse, in one sentence, an artifact whose settings or tensors its class cannot be made from.

    Args:
        path: The artifact, for the message.
        what: What it should have held, such as "whole policy".

    Raises:
        ArtifactError: In place of whatever the class or its `load_state_dict` raises inside the block.
    """
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} holds no {what}: {last_line(error)}") from error
