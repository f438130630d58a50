"""Runs claims: checked settings, the plan of tasks, finished work first, the rest on processes or on Ray."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from noiseworks.bench.claims import ScaleName
from noiseworks.bench.runner.describe import Described, check_device, describe_claims
from noiseworks.bench.runner.discovery import Source, split_names
from noiseworks.bench.runner.display import Display
from noiseworks.bench.runner.environment import available_cores, describe_environment
from noiseworks.bench.runner.tasks import Outcome, Task, finished
from noiseworks.core.artifacts import check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model

MAX_DEFAULT_JOBS = 4


@dataclass(frozen=True)
class Settings:
    """Checked settings of a run.

    Attributes:
        scale: Name of the scale.
        seeds: Seeds that replace those of the scale, or None.
        jobs: Number of processes at a time.
        out: The output folder, absolute.
        model: Model that the user named, or None.
        device: Resolved device.
        ray: Address of a Ray cluster, `local`, or None.
    """

    scale: ScaleName
    seeds: tuple[int, ...] | None
    jobs: int
    out: Path
    model: str | None
    device: str
    ray: str | None = None


def check_settings(
    *,
    scale: str,
    seeds: Sequence[str | int] | str | None,
    jobs: int | None,
    out: Path,
    model: str | None,
    device: str,
    ray: str | None = None,
) -> Settings:
    """Refuse bad settings before any work.

    Raises:
        InputError: Naming the value and what is allowed.
    """
    check_choice("scale", scale, get_args(ScaleName))
    if jobs is not None:
        check_number("jobs", jobs, low=1, integer=True)
    chosen_seeds = parse_seeds(seeds)
    if model is not None:
        resolve_model(model)
    if ray is not None:
        from noiseworks.bench.runner.cluster import check_installed

        check_installed()
    check_writable(out)
    device = check_device(device)
    if jobs is None:
        jobs = 1 if device.startswith("cuda") else min(available_cores(), MAX_DEFAULT_JOBS)
    return Settings(scale, chosen_seeds, jobs, Path(out).resolve(), model, device, ray)


def parse_seeds(seeds: Sequence[str | int] | str | None) -> tuple[int, ...] | None:
    """Return seeds given as numbers or as text such as "1000,1001".

    Raises:
        InputError: When one is no whole number of at least 0.
    """
    if seeds is None:
        return None
    words = split_names(seeds if isinstance(seeds, str) else [str(seed) for seed in seeds])
    wrong = [word for word in words if not (word.isascii() and word.isdecimal())]
    if wrong or not words:
        raise InputError(f"seeds must be whole numbers of at least 0 such as 1000,1001, got {seeds!r}")
    return tuple(int(word) for word in words)


def run_claims(sources: Sequence[Source], settings: Settings, command: str) -> dict[str, Any]:
    """Run and judge claims, write the results files and return their content.

    Args:
        sources: The claims.
        settings: Checked settings.
        command: The command that a results file names, without paths of this machine.

    Raises:
        InputError: When no claim has the scale, or another run uses the output folder.
    """
    from noiseworks.bench.runner.results import results_document, write_results

    count = f"{len(sources)} claim" + ("s" if len(sources) != 1 else "")
    with exclusive(settings.out), Display() as display:
        display.say(f"noiseworks bench: {count} at scale {settings.scale}, results in {settings.out}")
        described = describe_claims(sources, settings.scale, settings.out)
        plans = {claim.source.method: plan_tasks(claim, settings) for claim in described if claim.record}
        if plans and not any(plans.values()):
            raise InputError(f"no claim among {', '.join(plans)} has the scale {settings.scale!r}")
        entries = _run_and_judge(described, plans, settings, display)
        named = settings.model
        model = Path(named).name if named and Path(named).is_dir() else named
        environment = describe_environment(command)
        document = results_document(entries, environment, settings.scale, model, settings.device)
        write_results(document, settings.out)
    return document


def _run_and_judge(
    described: Sequence[Described], plans: dict[str, list[Task]], settings: Settings, display: Display
) -> list[dict[str, Any]]:
    from noiseworks.bench.runner.results import failed_import, judge_claim, skipped

    tasks = [task for plan in plans.values() for task in plan]
    display.expect(len(tasks))
    ended: dict[str, Outcome] = {}
    for outcome in run_all(tasks, settings, display):
        display.ended(outcome)
        ended[outcome.task.name] = outcome
    entries = []
    for claim in described:
        plan = plans.get(claim.source.method)
        if plan is None:
            entries.append(failed_import(claim, settings.out))
        elif not plan:
            entries.append(skipped(claim))
        else:
            entries.append(judge_claim(claim, [ended[task.name] for task in plan], settings.out))
    return entries


def plan_tasks(described: Described, settings: Settings) -> list[Task]:
    """Return a claim's tasks, one a seed; none when it lacks the scale."""
    record = described.record
    if settings.scale not in record["scales"]:
        return []
    return [
        Task(
            source=described.source,
            claim_version=record["version"],
            scale=settings.scale,
            settings=record["settings"],
            seed=seed,
            model=settings.model,
            device=settings.device,
            time_limit=record["time_limit"],
            threads=max(1, available_cores() // settings.jobs),
        )
        for seed in settings.seeds or record["seeds"]
    ]


def run_all(tasks: Sequence[Task], settings: Settings, display: Display) -> Iterator[Outcome]:
    """Yield the outcomes of finished work first, then of the rest as it ends."""
    old = {task.name: outcome for task in tasks if (outcome := finished(task, settings.out))}
    yield from old.values()
    left = [task for task in tasks if task.name not in old]
    if settings.ray is not None and left:
        from noiseworks.bench.runner.cluster import run_on_ray

        yield from run_on_ray(left, settings.out, settings.ray, display)
    else:
        from noiseworks.bench.runner.pool import run_local

        yield from run_local(left, settings.out, settings.jobs, display)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the output folder; the lock goes with the process, however it ends.

    Raises:
        InputError: When another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is using {out}; wait for it or name another --out") from None
        yield
