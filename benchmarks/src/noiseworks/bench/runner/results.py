"""The results file: schema `noiseworks-results/1`, one for a run and one for each claim.

A file holds `schema`, `environment`, `scale`, `model`, `device` and `claims`. A claim holds its description
(paper, statement, arms, columns), `status` (`judged`, `failed` or `skipped`), `verdict` (`tuning` at the scale
`tune`, which judges nothing), `void_reason`, its
targets with estimate, interval and verdict, `summary` (arm -> metric -> mean and interval), `measurements`
(arm -> one a seed, with metrics, series, images, notes, seconds) and `failures`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.bench.claims import Verdict
from noiseworks.bench.runner.describe import Described
from noiseworks.bench.runner.judge import estimate_mean, judge_target, void_reason
from noiseworks.bench.runner.records import targets_of
from noiseworks.bench.runner.tasks import LOG_NAME, Outcome
from noiseworks.bench.runner.verdicts import claim_verdict, target_verdict
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError

SCHEMA = "noiseworks-results/1"
IMPORT_LOG_NAME = "import.txt"


def judge_claim(described: Described, outcomes: Sequence[Outcome], out: Path) -> dict[str, Any]:
    """Return the results-file entry of a claim whose tasks have ended.

    A claim is judged only when every seed finished: dropping the seeds that failed would choose the data.

    Args:
        described: The claim.
        outcomes: One for each seed, in the order of the seeds.
        out: The output folder; paths in the entry are relative to it.
    """
    record = described.record
    done = [outcome for outcome in outcomes if outcome.result]
    failures = [
        {"seed": o.task.seed, "error": o.error, "log": str((o.folder / LOG_NAME).relative_to(out))}
        for o in outcomes
        if not o.result
    ]
    measurements = {
        arm["name"]: [_measurement(outcome, arm["name"], out) for outcome in done] for arm in record["arms"]
    }
    entry = {
        **record,
        "package_version": described.source.package_version,
        "seeds": [outcome.task.seed for outcome in outcomes],
        "machine": done[0].result["machine"] if done else {},
        "seconds": round(sum(o.result["seconds"] if o.result else o.seconds for o in outcomes), 2),
        "summary": _summary(measurements),
        "measurements": measurements,
        "notes": list(
            dict.fromkeys(n for runs in measurements.values() for run in runs for n in run["notes"])
        ),
        "failures": failures,
        "void_reason": None,
        "verdict": None,
        "status": "failed" if failures else "judged",
    }
    if not failures:
        _judge(entry, described, done, out)
    return entry


def _judge(entry: dict[str, Any], described: Described, done: Sequence[Outcome], out: Path) -> None:
    """Add verdicts to an entry whose seeds all finished."""
    targets = targets_of(described.record)
    measured = {arm: [run["metrics"] for run in entry["measurements"][arm]] for arm in entry["measurements"]}
    try:
        reason = void_reason(described.claim.preconditions, measured)
        estimates = [judge_target(target, measured) for target in targets]
    except InputError as error:
        log = str((done[0].folder / LOG_NAME).relative_to(out))
        entry["status"] = "failed"
        entry["failures"] = [{"seed": None, "error": str(error), "log": log}]
        return
    tuning = entry["scale"] == "tune"
    verdicts: list[Verdict] = [
        "tuning" if tuning else target_verdict(*pair) for pair in zip(targets, estimates, strict=True)
    ]
    entry["targets"] = [
        {
            **asdict(target),
            "estimate": estimate.value,
            "interval": [estimate.low, estimate.high],
            "observations": estimate.observations,
            "verdict": verdict,
        }
        for target, estimate, verdict in zip(targets, estimates, verdicts, strict=True)
    ]
    entry["void_reason"] = reason
    entry["verdict"] = "tuning" if tuning else "void" if reason else claim_verdict(targets, verdicts)


def failed_import(described: Described, out: Path) -> dict[str, Any]:
    """Return the entry of a claim that could not be imported, and write the trace into the output folder."""
    log = out / "tasks" / described.source.method / IMPORT_LOG_NAME
    atomic_write(log, described.trace)
    failure = {"seed": None, "error": described.error, "log": str(log.relative_to(out))}
    return {**_empty(described.source.method, "failed"), "failures": [failure]}


def skipped(described: Described, why: str) -> dict[str, Any]:
    """Return the entry of a claim that is not run, with the reason."""
    return {**_empty(described.source.method, "skipped"), **described.record, "notes": [why]}


def _empty(method: str, status: str) -> dict[str, Any]:
    return {
        "method": method,
        "paper": "",
        "statement": "",
        "arms": [],
        "targets": [],
        "columns": {},
        "seeds": [],
        "summary": {},
        "measurements": {},
        "notes": [],
        "failures": [],
        "machine": {},
        "seconds": 0.0,
        "void_reason": None,
        "verdict": None,
        "status": status,
    }


def _measurement(outcome: Outcome, arm: str, out: Path) -> dict[str, Any]:
    record = outcome.result["arms"][arm]
    folder = outcome.folder.relative_to(out)
    images = {title: str(folder / name) for title, name in record["images"].items()}
    return {"seed": outcome.task.seed, **record, "images": images}


def _summary(measurements: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for arm, runs in measurements.items():
        names = (
            [name for name in runs[0]["metrics"] if all(name in run["metrics"] for run in runs)]
            if runs
            else []
        )
        summary[arm] = {}
        for name in names:
            estimate = estimate_mean([run["metrics"][name] for run in runs])
            summary[arm][name] = {"mean": estimate.value, "interval": [estimate.low, estimate.high]}
    return summary


def results_document(
    claims: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    scale: str,
    model: str | None,
    device: str,
) -> dict[str, Any]:
    """Return the content of a results file."""
    return {
        "schema": SCHEMA,
        "environment": dict(environment),
        "scale": scale,
        "model": model,
        "device": device,
        "claims": list(claims),
    }


def write_results(document: Mapping[str, Any], out: Path) -> None:
    """Write `results.json` and one `results/<method>.json` a claim, each whole or not at all."""
    atomic_write(out / "results.json", _text(document))
    for claim in document["claims"]:
        one = {**document, "claims": [claim]}
        atomic_write(out / "results" / f"{claim['method']}.json", _text(one))


def _text(document: Mapping[str, Any]) -> str:
    """Return indented JSON with every list of numbers on one line: thousands of measured values are short."""
    numbers = r"\[\n\s*([-+.\d][-+.\deE,\s]*)\]"
    text = json.dumps(document, indent=1)
    return re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        InputError: When it is missing, no JSON, or of another schema version.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no results file at {path}; name the results.json of an earlier run") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no results file ({error}); name the results.json of an earlier run"
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema!r}, this release reads {SCHEMA!r}; make it again")
    return document


def read_folder(folder: str | Path) -> Iterable[dict[str, Any]]:
    """Yield every results file directly inside a folder, by name."""
    for path in sorted(Path(folder).glob("*.json")):
        yield read_results(path)
