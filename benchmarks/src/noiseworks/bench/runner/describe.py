"""Asks worker processes what the claims are, whether they are void, and what device is there.

The parent process imports no claim: a claim may import torch, take seconds, fail or crash.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.tasks import LOG_NAME, run_worker
from noiseworks.core.errors import InputError

IMPORT_SECONDS = 300.0


@dataclass(frozen=True)
class Described:
    """A claim's record, or the line that says why it cannot be imported and the log of that."""

    source: Source
    record: dict[str, Any] | None
    error: str | None = None
    log: Path | None = None


def describe_claims(sources: Sequence[Source], scale: str, out: Path) -> list[Described]:
    """Import every claim in one worker and return their records.

    A claim that cannot be imported ends that worker; it is reported and the rest go on in a new one.

    Args:
        sources: The claims.
        scale: Name of the scale to describe.
        out: The output folder, which keeps the logs of failed imports.
    """
    found: dict[int, Described] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while len(found) < len(sources):
            left = [(index, asdict(source)) for index, source in enumerate(sources) if index not in found]
            job = {"sources": left, "scale": scale, "folder": name}
            error = _call("describe", job, folder / LOG_NAME)
            for index, _ in left:
                path = folder / f"{index}.json"
                if not path.exists():
                    found[index] = _failed(sources[index], error or "it was not described", folder, out)
                    break
                found[index] = Described(sources[index], json.loads(path.read_text()))
    return [found[index] for index in range(len(sources))]


def void_reason(source: Source, folders: Sequence[Path], log: Path) -> str | None:
    """Return why a claim's precondition is absent, or None when it is met.

    Raises:
        InputError: When the precondition itself fails.
    """
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "reason.json"
        job = {
            "values": source.values,
            "method": source.method,
            "folders": [str(folder) for folder in folders],
            "output": str(output),
        }
        error = _call("precondition", job, log)
        if error:
            raise InputError(f"the precondition failed: {error}")
        return json.loads(output.read_text())


def check_device(device: str) -> str:
    """Return the resolved name of a device; only names other than `cpu` need a process that loads torch.

    Raises:
        InputError: When the device is unknown or absent.
    """
    if device == "cpu":
        return device
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "device.json"
        error = _call("device", {"device": device, "output": str(output)}, Path(name) / LOG_NAME)
        if error:
            raise InputError(error.partition("InputError: ")[2] or error)
        return json.loads(output.read_text())


def _call(mode: str, job: Mapping[str, Any], log: Path) -> str | None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        return run_worker([mode, file.name], log, IMPORT_SECONDS, os.environ, Event())


def _failed(source: Source, error: str, folder: Path, out: Path) -> Described:
    log = out / "tasks" / source.method / "import.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes((folder / LOG_NAME).read_bytes())
    return Described(source, None, error, log)
