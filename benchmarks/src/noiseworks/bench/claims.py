"""A paper's claim as data plus one function, and what a run of it measures.

A method's `claim.py` holds one `CLAIM`; the runner finds it by the entry-point group `noiseworks.claims`.
Every arm of a claim runs in one process on the same seed and the same units (prompts, problems, episodes),
so that results are ratios and paired differences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Role = Literal["method", "baseline", "naive", "reference"]
ScaleName = Literal["smoke", "quick", "laptop", "full"]
Verdict = Literal["holds", "partly", "no effect", "worse", "void"]


@dataclass(frozen=True)
class Arm:
    """One way of doing the task that a claim compares.

    Attributes:
        name: Short word that `run` receives.
        label: What tables and plots call it.
        role: `method` (the paper's), `baseline` (what the paper compares with), `naive` or `reference` (a
            ceiling).
    """

    name: str
    label: str
    role: Role


@dataclass(frozen=True)
class Target:
    """One judged comparison of two arms on one metric, with a paired bootstrap interval.

    Attributes:
        name: What is compared, in a few words ("network calls", "oracle score").
        metric: Name of a metric in `Measurement.metrics`, present in both arms.
        arm: The method's arm.
        against: The arm it is compared with.
        kind: `difference` (arm - against, of means) or `ratio` (mean of arm / mean of against).
        threshold: What the paper (or the issue) promises for it.
        better: Whether larger or smaller values are better.
        no_effect: The value that says that nothing changed: by default 0 for differences, 1 for ratios.
        guard: True for a side condition ("quality within 1 point"): it holds when the interval stays on the
            good side of `threshold`; it cannot show an effect by itself.
    """

    name: str
    metric: str
    arm: str
    against: str
    kind: Literal["difference", "ratio"]
    threshold: float
    better: Literal["higher", "lower"]
    no_effect: float | None = None
    guard: bool = False


@dataclass(frozen=True)
class Scale:
    """How much of a claim is run.

    Attributes:
        seeds: Judging seeds; one subprocess each. Calibration and tuning use other seeds (below 1000).
        time_limit: Seconds after which a (claim, seed) is stopped and reported as failed.
        settings: Sizes that `run` reads: number of prompts, steps, updates.
    """

    seeds: tuple[int, ...]
    time_limit: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What `run` is given besides arm and seed.

    Attributes:
        scale: The scale's name.
        settings: The scale's settings.
        model: The model the user named, or None for the testbed's own.
        device: "cpu", "cuda", ...
        folder: A folder of this (claim, seed) for artifacts; it exists, and survives until the report is
            written.
        progress: Call `progress(done, total, text)` to show progress; cheap.
    """

    scale: ScaleName
    settings: Mapping[str, Any]
    model: str | None
    device: str
    folder: Path
    progress: Callable[[int, int, str], None]


@dataclass(frozen=True)
class Measurement:
    """What one arm measured on one seed.

    Attributes:
        metrics: Name -> one value, or one value a unit (prompt, problem, episode). Values of a unit are
            paired across arms by position; a single value is paired across seeds only.
        series: Name -> (x values, y values): curves for the report.
        images: Title -> PNG/WebP file under `Context.folder`, shown in the report's grid.
        notes: Sentences for the report (what was found first, what deviates).
    """

    metrics: Mapping[str, float | Sequence[float]]
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Claim:
    """A paper's headline claim.

    Attributes:
        method: The package's slug.
        paper: Title, venue and arXiv number.
        statement: The claim in one sentence, with the paper's figure.
        testbed: Name of the testbed.
        arms: The arms, baselines first.
        targets: Judged comparisons; the first one is the effect, the others conditions or further effects.
        scales: Scale name -> what is run; `smoke`, `quick` and `laptop` always, `full` where it exists.
        run: `run(arm_name, seed, context) -> Measurement`.
        units: What one value of a list metric belongs to ("prompt", "problem", "episode", "image").
        precondition: Looks at the measurements of all arms of all seeds (arm -> list of Measurement) and
            returns None, or the reason why the claim is void on this model.
        columns: Metric name -> label, for the report's table, in order.
        version: Raise it when the meaning of the numbers changes; finished work of other versions is not
            reused.
    """

    method: str
    paper: str
    statement: str
    testbed: str
    arms: tuple[Arm, ...]
    targets: tuple[Target, ...]
    scales: Mapping[ScaleName, Scale]
    run: Callable[[str, int, Context], Measurement]
    units: str
    columns: Mapping[str, str]
    precondition: Callable[[Mapping[str, Sequence[Measurement]]], str | None] | None = None
    version: int = 1
