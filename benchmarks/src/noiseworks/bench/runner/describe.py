"""Imports the claims, which are light, and says what they are; asks a worker what device there is."""

import json
import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from noiseworks.bench.claims import Claim
from noiseworks.bench.runner.discovery import Source, load
from noiseworks.bench.runner.processes import ColdWorker, watch
from noiseworks.bench.runner.records import claim_record
from noiseworks.bench.runner.tasks import LOG_NAME
from noiseworks.core.errors import InputError

DEVICE_SECONDS = 300.0


@dataclass(frozen=True)
class Described:
    """A claim and its record, or the line that says why it cannot be imported and the trace of that."""

    source: Source
    record: dict[str, Any] | None
    claim: Claim | None = None
    error: str | None = None
    trace: str = ""


def load_claim(source: Source) -> Claim:
    """Return a source's claim, or the claim that measures a pair of composable methods.

    Raises:
        InputError: When the object is no `Claim`.
    """
    if len(source.values) == 2:
        from noiseworks.bench.compose import pair_claim

        return pair_claim(*(load(value) for value in source.values))
    claim = load(source.values[0])
    if not isinstance(claim, Claim):
        raise InputError(
            f"{source.values[0]} is a {type(claim).__name__}, expected a noiseworks.bench.claims.Claim"
        )
    return replace(claim, method=source.method)


def describe_claims(sources: Sequence[Source], scale: str) -> list[Described]:
    """Import every claim and return its record at a scale; one that cannot be imported is described as such."""
    return [_describe(source, scale) for source in sources]


def _describe(source: Source, scale: str) -> Described:
    try:
        claim = load_claim(source)
        return Described(source, claim_record(claim, scale), claim)
    except (Exception, SystemExit) as error:  # whatever a package does on import, the other claims run
        line = traceback.format_exception_only(error)[-1].strip()[:400]
        return Described(source, None, error=line, trace=traceback.format_exc())


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
        return watch(ColdWorker([mode, file.name], log, os.environ), log, DEVICE_SECONDS, Event())
