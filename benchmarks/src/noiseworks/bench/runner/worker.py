"""What runs inside a worker process: `python -m noiseworks.bench.runner.worker MODE JOB.json`.

Modes: `run` runs every arm of a claim on one seed, `device` resolves a device name. A failure is a traceback
on stderr and status 1.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from noiseworks.bench.claims import Claim, Context, Measurement
from noiseworks.bench.runner.describe import load_claim
from noiseworks.bench.runner.discovery import Source
from noiseworks.bench.runner.records import measurement_record
from noiseworks.bench.runner.tasks import PROGRESS_NAME, RESULT_NAME
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError

PROGRESS_SECONDS = 0.2


def run(job: dict[str, Any]) -> None:
    """Run every arm of a claim on one seed and write the result."""
    folder = Path(job["folder"])
    start = time.perf_counter()
    claim = load_claim(Source(job["method"], tuple(job["values"]), ""))
    given = (job["scale"], job["settings"], job["model"], job["device"], folder)
    # Preparing is a share of the bar, as an arm is.
    steps, arms = 1 + len(claim.arms), {}
    progress = _progress_writer(folder / PROGRESS_NAME, 0, steps, "preparing")
    progress(0, 1, "")
    shared = claim.prepare(job["seed"], Context(*given, progress, job["data"]))
    for index, arm in enumerate(claim.arms, start=1):
        progress = _progress_writer(folder / PROGRESS_NAME, index, steps, arm.label)
        context = Context(*given, progress, job["data"])
        progress(0, 1, "")
        arm_start = time.perf_counter()
        measurement = claim.run(arm.name, shared, context)
        arms[arm.name] = {
            **measurement_record(measurement, folder),
            "seconds": time.perf_counter() - arm_start,
        }
        _check_metrics(claim, arm.name, measurement)
    result = {
        "fingerprint": job["fingerprint"],
        "arms": arms,
        "seconds": time.perf_counter() - start,
        "machine": machine(job["device"]),
    }
    atomic_write(folder / RESULT_NAME, json.dumps(result))


def device(job: dict[str, Any]) -> None:
    """Write the resolved device to `job["output"]`."""
    from noiseworks.core.devices import resolve_device

    atomic_write(job["output"], json.dumps(str(resolve_device(job["device"]))))


def machine(device: str) -> dict[str, Any]:
    """Return the accelerator and the thread count of this process; torch is asked only when it is loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {"gpu": None, "threads": None}
    cuda = device.startswith("cuda")
    return {"gpu": torch.cuda.get_device_name(device) if cuda else None, "threads": torch.get_num_threads()}


def die_with_parent() -> None:
    """End this process group when standard input closes, as it does when the parent dies."""
    pipe = os.dup(0)
    os.set_inheritable(pipe, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    end_with(pipe)


def end_with(pipe: int) -> None:
    """End this process group when the other side of a pipe closes."""

    def watch() -> None:
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _check_metrics(claim: Claim, arm: str, measurement: Measurement) -> None:
    for target in claim.targets:
        if arm in (target.arm, *target.rivals) and target.metric not in measurement.metrics:
            raise InputError(
                f"arm {arm!r} did not measure {target.metric!r}, which target {target.name!r} needs; "
                f"it measured {', '.join(measurement.metrics) or 'nothing'}"
            )


def _progress_writer(path: Path, arm: int, arms: int, label: str) -> Callable[[int, int, str], None]:
    """Return `Context.progress` for one arm: writes the task's progress five times a second."""
    last = [0.0]

    def progress(done: int, total: int, text: str = "") -> None:
        now = time.monotonic()
        if now - last[0] < PROGRESS_SECONDS:
            return
        last[0] = now
        share = (arm + min(done / max(total, 1), 1.0)) / arms
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps([round(1000 * share), 1000, f"{label} {text}".strip()]))
        os.replace(temporary, path)

    return progress


MODES = {"run": run, "device": device}

if __name__ == "__main__":
    die_with_parent()
    MODES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
