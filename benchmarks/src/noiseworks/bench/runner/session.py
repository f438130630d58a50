"""`noiseworks bench`: run the installed claims, judge them and write the report."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import Parameter
from noiseworks.bench.claims import ScaleName
from noiseworks.bench.runner.describe import Described, check_device, describe_claims
from noiseworks.bench.runner.discovery import Source, select_claims, split_names
from noiseworks.bench.runner.display import Display
from noiseworks.bench.runner.environment import available_cores, command_line, describe_environment
from noiseworks.bench.runner.tasks import Outcome, Task, finished
from noiseworks.core.artifacts import check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model

MAX_DEFAULT_JOBS = 4


@dataclass(frozen=True)
class BenchResult:
    """What `bench` returns.

    Attributes:
        document: The content of `results.json`.
        results: Path of `results.json`.
        regressions: One sentence for each regression against the file of `--compare`.
        failed: Whether a task failed or something regressed.
    """

    document: dict[str, Any]
    results: Path
    regressions: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a claim failed to run or regressed; a bad verdict is a result, not a failure."""
        return bool(self.regressions) or any(claim["status"] == "failed" for claim in self.document["claims"])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that `--json` prints; the measurements are in the results file."""
        kept = ("method", "status", "verdict", "void_reason", "targets", "failures", "notes", "seconds")
        return {
            "results": str(self.results),
            "scale": self.document["scale"],
            "claims": [{name: claim[name] for name in kept} for claim in self.document["claims"]],
            "regressions": list(self.regressions),
        }

    def __rich__(self) -> Any:
        from noiseworks.bench.runner.display import results_table
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"regression: {sentence}", style="bold red") for sentence in self.regressions]
        return Group(results_table(self.document["claims"]), "", *lines, f"results: {self.results}")


@dataclass(frozen=True)
class Settings:
    """Checked settings of a run.

    Attributes:
        scale: Name of the scale.
        seeds: Seeds that replace those of the scale, or None.
        jobs: Number of processes at a time.
        out: The output folder.
        model: Model that the user named, or None.
        device: Resolved device.
    """

    scale: ScaleName
    seeds: tuple[int, ...] | None
    jobs: int
    out: Path
    model: str | None
    device: str


def check_settings(
    scale: str,
    seeds: Sequence[str | int] | str | None,
    jobs: int | None,
    out: Path,
    model: str | None,
    device: str,
) -> Settings:
    """Refuse bad settings before any work.

    Raises:
        InputError: Naming the value and what is allowed.
    """
    check_choice("scale", scale, get_args(ScaleName))
    if jobs is not None:
        check_number("jobs", jobs, low=1, integer=True)
    if model is not None:
        resolve_model(model)
    check_writable(out)
    if jobs is None:
        jobs = 1 if device.startswith("cuda") else min(available_cores(), MAX_DEFAULT_JOBS)
    return Settings(scale, parse_seeds(seeds), jobs, Path(out).resolve(), model, check_device(device))


def parse_seeds(seeds: Sequence[str | int] | str | None) -> tuple[int, ...] | None:
    """Return seeds given as numbers or as text such as "1000,1001".

    Raises:
        InputError: When one is no whole number of at least 0.
    """
    if seeds is None:
        return None
    words = split_names(seeds if isinstance(seeds, str) else [str(seed) for seed in seeds])
    wrong = [word for word in words if not word.isdecimal()]
    if wrong or not words:
        raise InputError(f"seeds must be whole numbers of at least 0 such as 1000,1001, got {seeds!r}")
    return tuple(int(word) for word in words)


def bench(
    *,
    methods: Sequence[str] | None = None,
    scale: ScaleName = "quick",
    seeds: Sequence[str] | None = None,
    jobs: int | None = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("bench-results"),
    model: str | None = None,
    device: str = "cpu",
) -> BenchResult:
    """Run the installed methods' claims against their baselines and judge them.

    Each (claim, seed) runs in a process of its own. Run the same command again after an interruption:
    finished work is kept in the output folder and not repeated.

    Args:
        methods: Methods to run, as `--methods a,b`; by default every installed one.
        scale: How much is run: `smoke` only proves that it runs, `quick` is the default, `laptop` judges
            with the committed sizes, `full` takes real models and data.
        seeds: Seeds instead of those of the scale, as `--seeds 1000,1001`.
        jobs: Processes at a time; by default the number of cores, at most 4, and 1 on a CUDA device.
        out: Folder of the results.
        model: Model instead of the testbed's: a directory, a hub id or `testbed:<name>`.
        device: `cpu`, `cuda`, `cuda:<n>`, `mps` or `auto`.

    Returns:
        The results; its `failed` says whether a claim failed to run.

    Raises:
        InputError: On bad input, before any work.
    """
    settings = check_settings(scale, seeds, jobs, out, model, device)
    return run_claims(select_claims(split_names(methods)), settings)


def run_claims(sources: Sequence[Source], settings: Settings) -> BenchResult:
    """Run, judge and write the results of these claims."""
    from noiseworks.bench.runner import results

    with exclusive(settings.out), Display() as display:
        display.say(
            f"noiseworks bench: {len(sources)} claims at scale {settings.scale}, results in {settings.out}"
        )
        described = describe_claims(sources, settings.scale, settings.out)
        plans = {d.source.method: plan_tasks(d, settings) for d in described if d.record}
        if not any(plans.values()) and all(d.record for d in described):
            raise InputError(f"no claim among {', '.join(plans)} has the scale {settings.scale!r}")
        ended: dict[Task, Outcome] = {}
        display.expect(sum(map(len, plans.values())))
        for outcome in run_all([task for tasks in plans.values() for task in tasks], settings, display):
            display.ended(outcome)
            ended[outcome.task.name] = outcome
        claims = []
        for claim in described:
            if claim.record is None:
                claims.append(results.failed_import(claim, settings.out))
            elif not plans[claim.source.method]:
                claims.append(results.skipped(claim))
            else:
                outcomes = [ended[task.name] for task in plans[claim.source.method]]
                claims.append(results.judge_claim(claim, outcomes, settings.out))
        document = results.results_document(
            claims, describe_environment(command_line()), settings.scale, settings.model, settings.device
        )
        results.write_results(document, settings.out)
    return BenchResult(document, settings.out / "results.json")


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
    from noiseworks.bench.runner.pool import run_local

    old = {task.name: outcome for task in tasks if (outcome := finished(task, settings.out))}
    yield from old.values()
    yield from run_local(
        [task for task in tasks if task.name not in old], settings.out, settings.jobs, display
    )


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
            raise InputError(
                f"another run is using {out}; wait for it or name another folder with --out"
            ) from None
        yield
