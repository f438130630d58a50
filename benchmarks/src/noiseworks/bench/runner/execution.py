"""Runs claims: checked settings, the plan of tasks, finished work first, the rest on processes or on Ray."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from noiseworks.bench.claims import SEEDS, ScaleName
from noiseworks.bench.runner.describe import Described, check_device, describe_claims
from noiseworks.bench.runner.discovery import Source, split_names
from noiseworks.bench.runner.display import Display
from noiseworks.bench.runner.environment import available_cores, describe_environment
from noiseworks.bench.runner.kinds import check_kind
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
        data: Name -> value of what the user gave with `--data`.
        cold: Whether each task starts in an interpreter of its own.
    """

    scale: ScaleName
    seeds: tuple[int, ...] | None
    jobs: int
    out: Path
    model: str | None
    device: str
    ray: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    cold: bool = False


def check_settings(
    *,
    scale: str,
    seeds: Sequence[str | int] | str | None,
    jobs: int | None,
    out: Path,
    model: str | None,
    device: str,
    ray: str | None = None,
    data: Sequence[str] | None = None,
    cold: bool = False,
) -> Settings:
    """Refuse bad settings before any work.

    Raises:
        InputError: Naming the value and what is allowed.
    """
    check_choice("scale", scale, get_args(ScaleName))
    if jobs is not None:
        check_number("jobs", jobs, low=1, integer=True)
    chosen_seeds = parse_seeds(seeds)
    check_seeds(scale, chosen_seeds)
    given = parse_data(data)
    if model is not None:
        resolve_model(model)
    if ray is not None:
        from noiseworks.bench.runner.cluster import check_installed

        check_installed()
    check_writable(out)
    device = check_device(device)
    if jobs is None:
        jobs = 1 if device.startswith("cuda") else min(available_cores(), MAX_DEFAULT_JOBS)
    return Settings(scale, chosen_seeds, jobs, Path(out).resolve(), model, device, ray, given, cold)


def parse_seeds(seeds: Sequence[str | int] | str | None) -> tuple[int, ...] | None:
    """Return seeds given as numbers or as text such as "1000,1001".

    Raises:
        InputError: When one is no whole number of at least 0.
    """
    if seeds is None:
        return None
    words = split_names(seeds if isinstance(seeds, str) else [str(seed) for seed in seeds])
    wrong = [word for word in words if not (word.isascii() and word.isdecimal() and len(word) < 20)]
    if wrong or not words:
        raise InputError(f"seeds must be whole numbers of at least 0 such as 1000,1001, got {seeds!r}")
    return tuple(int(word) for word in words)


def check_seeds(scale: ScaleName, seeds: Sequence[int] | None) -> None:
    """Refuse seeds outside the scale's range, so that nobody tunes on a judging seed or judges on a tuned one.

    Raises:
        InputError: Naming the seeds and the range.
    """
    allowed = SEEDS[scale]
    wrong = [seed for seed in seeds or () if seed not in allowed]
    if wrong:
        raise InputError(
            f"seeds at scale {scale!r} lie in {allowed.start} to {allowed.stop - 1}, got {', '.join(map(str, wrong))}"
        )


def parse_data(words: Sequence[str] | None) -> dict[str, str]:
    """Return what was given as `name=value` words.

    Raises:
        InputError: When a word has another form, or a name occurs twice.
    """
    found: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (name and equals and value) or name in found:
            raise InputError(
                f"data are given once each as name=path, such as --data test=problems.jsonl, got {word!r}"
            )
        found[name] = value
    return found


def check_data(described: Sequence[Described], given: Mapping[str, str]) -> None:
    """Refuse data that no claim asks for, and files and models that are not there.

    Raises:
        InputError: Naming what the claims take.
    """
    declared = {data.name: data for one in described if one.claim for data in one.claim.data}
    for name, value in given.items():
        if name not in declared:
            known = "; ".join(f"{data.name}: {data.about}" for data in declared.values()) or "none"
            raise InputError(f"no claim of this run takes data called {name!r}; they take: {known}")
        if declared[name].kind == "model":
            resolve_model(value)
        elif not Path(value).exists():
            raise InputError(f"no file or folder {value} for --data {name}; name {declared[name].about}")


def cannot_run(described: Described, settings: Settings) -> str | None:
    """Return why a claim is not run with these settings, or None."""
    record = described.record
    if described.claim.scale(settings.scale) is None:
        return f"no scale {settings.scale!r}; it has {', '.join(record['scales'])}"
    missing = [
        data
        for data in described.claim.data
        if settings.scale in data.scales and data.name not in settings.data
    ]
    if missing:
        wanted = ", ".join(f"--data {data.name}=... ({data.about})" for data in missing)
        return f"the scale {settings.scale!r} needs {wanted}"
    return None


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

    described = describe_claims(sources, settings.scale)
    check_data(described, settings.data)
    for one in described:
        if settings.model is not None and one.claim and one.claim.model_kind:
            check_kind(settings.model, one.claim.model_kind, one.source.method)
    reasons = {one.source.method: cannot_run(one, settings) for one in described if one.claim}
    if reasons and all(reasons.values()):
        raise InputError("; ".join(f"{method}: {reason}" for method, reason in reasons.items()))
    count = f"{len(sources)} claim" + ("s" if len(sources) != 1 else "")
    with exclusive(settings.out), Display() as display:
        display.say(f"noiseworks bench: {count} at scale {settings.scale}, results in {settings.out}")
        entries = _run_and_judge(described, reasons, settings, display)
        named = settings.model
        model = Path(named).name if named and Path(named).is_dir() else named
        environment = describe_environment(command)
        document = results_document(entries, environment, settings.scale, model, settings.device)
        write_results(document, settings.out)
    return document


def _run_and_judge(
    described: Sequence[Described], reasons: Mapping[str, str | None], settings: Settings, display: Display
) -> list[dict[str, Any]]:
    from noiseworks.bench.runner.results import failed_import, judge_claim, skipped

    plans = {
        one.source.method: plan_tasks(one, settings)
        for one in described
        if one.claim and not reasons[one.source.method]
    }
    tasks = [task for plan in plans.values() for task in plan]
    display.expect(len(tasks))
    ended: dict[str, Outcome] = {}
    for outcome in run_all(tasks, settings, display):
        display.ended(outcome)
        ended[outcome.task.name] = outcome
    entries = []
    for one in described:
        method = one.source.method
        if one.claim is None:
            entries.append(failed_import(one, settings.out))
        elif reasons[method]:
            entries.append(skipped(one, reasons[method]))
        else:
            entries.append(judge_claim(one, [ended[task.name] for task in plans[method]], settings.out))
    return entries


def plan_tasks(described: Described, settings: Settings) -> list[Task]:
    """Return a claim's tasks, one a seed."""
    record = described.record
    data = {
        one.name: value
        for one in described.claim.data
        if (value := _absolute(settings.data.get(one.name), one.kind)) is not None
    }
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
            data=data,
        )
        for seed in settings.seeds or record["seeds"]
    ]


def _absolute(value: str | None, kind: str) -> str | None:
    """Return a path that a worker finds from wherever it runs; names of models stay."""
    return (
        str(Path(value).resolve())
        if value is not None and (kind == "path" or Path(value).is_dir())
        else value
    )


def run_all(tasks: Sequence[Task], settings: Settings, display: Display) -> Iterator[Outcome]:
    """Yield the outcomes of finished work first, then of the rest as it ends."""
    old = {task.name: outcome for task in tasks if (outcome := finished(task, settings.out))}
    yield from old.values()
    left = [task for task in tasks if task.name not in old]
    if settings.ray is not None and left:
        from noiseworks.bench.runner.cluster import run_on_ray

        yield from run_on_ray(left, settings.out, settings.ray, display)
    elif left:
        from noiseworks.bench.runner.pool import run_local

        yield from run_local(left, settings.out, settings.jobs, display, cold=settings.cold)


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
