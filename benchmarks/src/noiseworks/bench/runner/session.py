"""The runner's commands: run claims (`bench`), pairs of methods (`compose`), and the results table."""

import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from noiseworks.bench.claims import ScaleName
from noiseworks.bench.runner.compare import check_comparable, regressions
from noiseworks.bench.runner.discovery import Source, select_claims, select_pairs, split_names
from noiseworks.bench.runner.execution import Settings, check_settings, run_claims

Names = Annotated[Sequence[str] | None, Parameter(negative=())]
OpenFlag = Annotated[bool | None, Parameter(name="--open", negative="--no-open")]
DEFAULT_OUT = Path("bench-results")


@dataclass(frozen=True)
class BenchResult:
    """What a run returns.

    Attributes:
        document: The content of `results.json`.
        results: Path of `results.json`.
        report: Path of the HTML report.
        regressions: One sentence for each regression against the file of `--compare`.
    """

    document: dict[str, Any]
    results: Path
    report: Path
    regressions: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a claim failed to run or regressed; a bad verdict is a result, not a failure."""
        return bool(self.regressions) or any(c["status"] == "failed" for c in self.document["claims"])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that `--json` prints; the measurements are in the results file."""
        kept = ("method", "status", "verdict", "void_reason", "targets", "failures", "notes", "seconds")
        return {
            "results": str(self.results),
            "report": str(self.report),
            "scale": self.document["scale"],
            "claims": [{name: claim[name] for name in kept} for claim in self.document["claims"]],
            "regressions": list(self.regressions),
        }

    def __rich__(self) -> Any:
        from noiseworks.bench.runner.display import headline, results_table
        from rich.console import Group
        from rich.text import Text

        lines = [Text(f"regression: {sentence}", style="bold red") for sentence in self.regressions]
        end = Text(f"\nreport: {self.report}", overflow="fold", no_wrap=True)
        summary = Text(f"\n{headline(self.document)}{judged_text(self.document)}", style="bold")
        return Group(results_table(self.document["claims"]), summary, *lines, end)


def bench(
    *,
    methods: Names = None,
    scale: ScaleName = "quick",
    seeds: Names = None,
    jobs: int | None = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = DEFAULT_OUT,
    model: str | None = None,
    device: str = "cpu",
    compare: Path | None = None,
    data: Names = None,
    ray: str | None = None,
    cold: bool = False,
    open_report: OpenFlag = None,
) -> BenchResult:
    """Run the installed methods' claims against their baselines, judge them and write the report.

    Each (claim, seed) runs in a process of its own. Run the same command again after an interruption:
    finished work is kept in the output folder and not repeated.

    Args:
        methods: Methods to run, as `--methods a,b`; by default every installed one.
        scale: How much is run: `smoke` only proves that it runs, `quick` is a first look, `tune` is `laptop` on
            seeds for tuning and judges nothing, `laptop` judges, `full` takes a real model and real data.
        seeds: Seeds instead of those of the scale, as `--seeds 1003,1004`: 0 to 499 for `tune`, 500 to 999 for
            `smoke` and `quick`, 1000 and above for `laptop` and `full`.
        jobs: Processes at a time; by default the number of cores, at most 4, and 1 on a CUDA device.
        out: Folder of results and report.
        model: Model instead of the testbed's: a directory, a hub id or `testbed:<name>`.
        device: `cpu`, `cuda`, `cuda:<n>`, `mps` or `auto`.
        compare: An earlier `results.json`; regressions are named and end with status 1.
        data: What claims need of the user's at a scale, as `--data test=problems.jsonl`; once for each.
        ray: Address of a Ray cluster to run on, or `local`.
        cold: Whether each task starts in an interpreter of its own. Without it, on Linux and the CPU, tasks are forked
            from one process that has loaded torch and the hosts.
        open_report: Whether to open the report in the browser; by default on a terminal only.

    Returns:
        The results; `failed` says whether a claim failed to run or regressed.

    Raises:
        InputError: On bad input, before any work.
    """
    sources = select_claims(split_names(methods))
    settings = check_settings(
        scale=scale,
        seeds=seeds,
        jobs=jobs,
        out=out,
        model=model,
        device=device,
        ray=ray,
        data=data,
        cold=cold,
    )
    return _run("noiseworks bench", methods, sources, settings, compare, open_report)


def compose(
    *,
    methods: Names = None,
    scale: ScaleName = "quick",
    seeds: Names = None,
    jobs: int | None = None,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = DEFAULT_OUT / "compose",
    model: str | None = None,
    device: str = "cpu",
    compare: Path | None = None,
    ray: str | None = None,
    cold: bool = False,
    open_report: OpenFlag = None,
) -> BenchResult:
    """Measure pairs of methods attached to one host together: do the gains multiply, does quality hold?

    Every pair of the named methods is measured: none, each alone, and both, on the same seeds and units.

    Args:
        methods: Methods in the order in which they attach, as `--methods a,b`; by default every installed
            one that can be composed.
        scale: How much is run.
        seeds: Seeds instead of those of the scale, as `--seeds 500,501`.
        jobs: Processes at a time; by default the number of cores, at most 4, and 1 on a CUDA device.
        out: Folder of results and report.
        model: Model instead of the testbed's: a directory, a hub id or `testbed:<name>`.
        device: `cpu`, `cuda`, `cuda:<n>`, `mps` or `auto`.
        compare: An earlier `results.json` of compose; regressions are named and end with status 1.
        ray: Address of a Ray cluster to run on, or `local`.
        cold: Whether each task starts in an interpreter of its own. Without it, on Linux and the CPU, tasks are forked
            from one process that has loaded torch and the hosts.
        open_report: Whether to open the report in the browser; by default on a terminal only.

    Returns:
        The results, with one claim a pair.

    Raises:
        InputError: On bad input, before any work.
    """
    sources = select_pairs(split_names(methods))
    settings = check_settings(
        scale=scale, seeds=seeds, jobs=jobs, out=out, model=model, device=device, ray=ray, cold=cold
    )
    return _run("noiseworks bench compose", methods, sources, settings, compare, open_report)


def _run(
    command: str,
    methods: Sequence[str] | None,
    sources: Sequence[Source],
    settings: Settings,
    compare: Path | None,
    open_report: bool | None,
) -> BenchResult:
    old = None if compare is None else check_comparable(compare, sources, settings)
    try:
        document = run_claims(sources, settings, typed_command(command, methods, settings))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; finished work is kept, run the same command again to go on"
        ) from None
    from noiseworks.bench.runner.report import write_report

    report = write_report(document, settings.out)
    if sys.stdout.isatty() if open_report is None else open_report:
        webbrowser.open(report.as_uri())
    found = () if old is None else regressions(old, document)
    return BenchResult(document, settings.out / "results.json", report, tuple(found))


def typed_command(command: str, methods: Sequence[str] | None, settings: Settings) -> str:
    """Return the command that repeats a run, without paths, which differ from machine to machine."""
    words = [command]
    if methods is not None:
        words += ["--methods", ",".join(split_names(methods))]
    words += ["--scale", settings.scale]
    if settings.seeds is not None:
        words += ["--seeds", ",".join(map(str, settings.seeds))]
    if settings.model is not None:
        words += ["--model", _without_folders(settings.model)]
    for name, value in settings.data.items():
        words += ["--data", f"{name}={_without_folders(value)}"]
    return " ".join(words if settings.device == "cpu" else [*words, "--device", settings.device])


def judged_text(document: Mapping[str, Any]) -> str:
    """Return the committed verdicts of a run's claims, for a run at a scale that only looks."""
    from noiseworks.bench.runner.display import count_verdicts
    from noiseworks.bench.runner.tables import published_verdicts

    known = published_verdicts()
    shown = [known[claim["method"]] for claim in document["claims"] if claim["method"] in known]
    if document["scale"] in ("laptop", "full") or not shown:
        return ""
    return f"; judged verdicts (laptop, committed): {count_verdicts(shown)}"


def _without_folders(name: str) -> str:
    return Path(name).name if Path(name).exists() else name
