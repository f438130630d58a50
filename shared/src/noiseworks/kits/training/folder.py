"""A training run as a folder that one trainer at a time works in, and that the same command goes on with.

    with open_run(out, {"data": data, "model": architecture, "fit": options}) as run:
        fit(module, batches, run=run, options=options)

The folder holds `config.json` (the settings), `metrics.csv`, `tensorboard/`, `checkpoints/last.ckpt`, and what the
command leaves in the end.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import atomic_write, check_writable
from noiseworks.core.errors import ArtifactError, InputError

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
LOCK_NAME = ".lock"
_KIND = "noiseworks/run"
_MISSING = object()


@dataclass(frozen=True)
class Run:
    """An open run.

    Attributes:
        folder: Its folder.
    """

    folder: Path

    @property
    def last(self) -> Path:
        """Where the checkpoint is written."""
        return self.folder / CHECKPOINT

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from, None for a run that begins."""
        return self.last if self.last.is_file() else None


@contextmanager
def open_run(out: str | Path, settings: Mapping[str, Any], resume: bool = True) -> Iterator[Run]:
    """Open a run's folder for as long as the block lasts: a new run begins, the same one goes on.

    Call it when all other input has been checked: it is the first thing that writes. Nothing of what the folder holds
    is deleted. Settings of a run that was stopped before its first checkpoint may be replaced by others.

    Args:
        out: The folder: new, empty, or of the same run.
        settings: What the run is: name -> plain value or options (a dataclass). What the `FREE` of an options class
            names may differ when the run goes on.
        resume: Whether a run that the folder holds goes on, or is refused.

    Yields:
        The run.

    Raises:
        InputError: When the folder cannot be written, holds something else or a run with other settings, or when
            another trainer is at work in it.
    """
    out = check_writable(out)
    if _rank():  # the first process of several holds the lock and has compared the settings
        yield Run(out)
        return
    from filelock import FileLock, Timeout

    _refuse_other_files(out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another trainer is at work in {out}; wait for it, or name another folder"
        ) from None
    try:
        if _begins(out, settings, resume):
            record = {"kind": _KIND, **_plain(settings)}
            atomic_write(out / CONFIG_NAME, json.dumps(record, indent=2) + "\n")
        yield Run(out)
    finally:
        lock.release()


def check_run(out: str | Path, settings: Mapping[str, Any], resume: bool = True) -> None:
    """Refuse a folder that `open_run` would refuse for what it holds, and write nothing: for before slow loading.

    Args:
        out: The folder.
        settings: What is known of the run so far: settings that it has besides are compared by `open_run` alone.
        resume: Whether a run that the folder holds goes on, or is refused.

    Raises:
        InputError: As `open_run`.
    """
    out = check_writable(out)
    _refuse_other_files(out)
    _begins(out, settings, resume, whole=False)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of the run that a folder holds; options are mappings of their fields.

    Raises:
        ArtifactError: When it holds none.
    """
    path = Path(folder) / CONFIG_NAME
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no training run ({CONFIG_NAME} cannot be read)") from error
    if not isinstance(record, dict) or record.pop("kind", None) != _KIND:
        raise ArtifactError(f"{folder} holds no training run (its {CONFIG_NAME} is of something else)")
    return record


def _rank() -> int:
    """Return this process's number as launchers tell it, before anything heavy has been imported."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _refuse_other_files(out: Path) -> None:
    if not out.is_dir():
        return
    if (out / CONFIG_NAME).is_file():
        read_settings(out)  # of a run, or refused before anything is written
        return
    others = sorted(path.name for path in out.iterdir() if path.name != LOCK_NAME)
    if others:
        raise InputError(f"{out} holds {others[0]!r} and no training run; name a new or empty folder")


def _begins(out: Path, settings: Mapping[str, Any], resume: bool, *, whole: bool = True) -> bool:
    """Return whether settings are to be written: the run begins, or had not come to a checkpoint."""
    if not (out / CONFIG_NAME).is_file():
        return True
    before = read_settings(out)
    if not (out / CHECKPOINT).is_file():
        return True
    if not resume:
        raise InputError(f"{out} already holds a run; name another folder")
    free, old, new = _free(settings), _leaves(before), _leaves(_plain(settings))
    for name in [*new, *(name for name in old if whole and name not in new)]:
        left, right = old.get(name, _MISSING), new.get(name, _MISSING)
        if name not in free and left != right:
            raise InputError(
                f"{out} was begun with {_said(name, left)}, now {_said(name, right)}: "
                "give the former to go on, or name another folder"
            )
    return False


def _said(name: str, value: Any) -> str:
    return f"no {name}" if value is _MISSING else f"{name} {value!r}"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in settings.items()
    }
    return json.loads(json.dumps(values, default=str))


def _free(settings: Mapping[str, Any]) -> set[str]:
    return {f"{name}.{field}" for name, value in settings.items() for field in getattr(value, "FREE", ())}


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
