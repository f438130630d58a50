"""A paper's claim as data plus two functions, and what a run of it measures.

A method's `claim.py` holds one `CLAIM`; the runner finds it by the entry-point group `noiseworks.claims`.
`prepare` makes what all arms of a seed share (the model, the prompts, what was calibrated), `run` measures one
arm with it. Every arm runs in one process on the same seed and the same units (prompts, problems, episodes), so
that results are ratios and paired differences.

The runner imports every claim to see what it is, before anything is run: a `claim.py` imports torch and its host
inside `prepare` and `run`, never at module level.

Seeds tell judging from everything before it. Below 500 is for tuning and calibration, 500 to 999 for the scales
that only look (`smoke`, `quick`), 1000 and above for the scales that judge (`laptop`, `full`), so that nobody who
tries a method, or follows its quick figures, tunes on what it is judged by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from noiseworks.core.errors import InputError

Role = Literal["method", "baseline", "naive", "reference"]
ScaleName = Literal["smoke", "quick", "tune", "laptop", "full"]
Verdict = Literal["holds", "partly", "no effect", "worse", "void", "tuning"]
ModelKind = Literal["pipeline", "autoencoder", "language model", "policy"]

LARGEST_SEED = 999_999  # claims multiply it to number episodes and noise
SEEDS: Mapping[ScaleName, range] = MappingProxyType(
    {
        "tune": range(500),
        "smoke": range(500, 1000),
        "quick": range(500, 1000),
        "laptop": range(1000, LARGEST_SEED + 1),
        "full": range(1000, LARGEST_SEED + 1),
    }
)
FIRST_TUNING_SEED = 100  # of the scale `tune`; calibration inside a claim uses smaller ones


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
        name: What is compared, in a few words ("network calls", "oracle score"); empty for the label that
            `Claim.columns` gives the metric.
        metric: Name of a metric in `Measurement.metrics`, present in all arms that are compared.
        arm: The method's arm.
        against: The arm it is compared with, or several: then with the best of them by mean, chosen anew in each
            resample of the bootstrap. The interval so counts how uncertain it is which one is best, and leans
            against the method.
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
    against: str | tuple[str, ...]
    kind: Literal["difference", "ratio"]
    threshold: float
    better: Literal["higher", "lower"]
    no_effect: float | None = None
    guard: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.against, str):
            object.__setattr__(self, "against", tuple(self.against))

    @property
    def rivals(self) -> tuple[str, ...]:
        """The arms that `arm` is compared with."""
        return (self.against,) if isinstance(self.against, str) else self.against


Against = str | Sequence[str]


def at_most(
    metric: str,
    arm: str,
    against: Against,
    *,
    ratio: float | None = None,
    difference: float | None = None,
    name: str = "",
    guard: bool = False,
) -> Target:
    """Promise that a metric, which is better when lower, is at most `ratio` times that of another arm.

    Args:
        metric: The metric.
        arm: The method's arm.
        against: One arm, or several for the best of them.
        ratio: Largest ratio of the means. Use a difference where the other mean can be 0: such a ratio is refused.
        difference: Largest difference of the means, instead of a ratio.
        name: What is compared; by default the metric's label.
        guard: Whether it is a side condition instead of an effect. What the paper claims to beat is an effect;
            what must not be paid for it is a guard. Decide before judging.

    Raises:
        InputError: When not exactly one of `ratio` and `difference` is given.
    """
    kind, threshold = _threshold(ratio, difference)
    return Target(name, metric, arm, _arms(against), kind, threshold, "lower", guard=guard)


def at_least(
    metric: str,
    arm: str,
    against: Against,
    *,
    ratio: float | None = None,
    difference: float | None = None,
    name: str = "",
    guard: bool = False,
) -> Target:
    """Promise that a metric, which is better when higher, is at least `ratio` times that of another arm.

    The arguments are those of `at_most`.

    Raises:
        InputError: When not exactly one of `ratio` and `difference` is given.
    """
    kind, threshold = _threshold(ratio, difference)
    return Target(name, metric, arm, _arms(against), kind, threshold, "higher", guard=guard)


def no_worse(
    metric: str,
    arm: str,
    against: Against,
    *,
    by: float = 0.0,
    better: Literal["higher", "lower"] = "higher",
    name: str = "",
) -> Target:
    """Guard that a metric loses at most `by` (a difference of means) against another arm.

    Args:
        metric: The metric.
        arm: The method's arm.
        against: One arm, or several for the best of them.
        by: The loss that is accepted, at least 0.
        better: Whether larger or smaller values are better.
        name: What is compared; by default the metric's label.

    Raises:
        InputError: When `by` is below 0.
    """
    if by < 0:
        raise InputError(f"a loss that is accepted is at least 0, got {by!r}")
    threshold = -by if better == "higher" else by
    return Target(name, metric, arm, _arms(against), "difference", threshold, better, guard=True)


def _arms(against: Against) -> str | tuple[str, ...]:
    return against if isinstance(against, str) else tuple(against)


def _threshold(ratio: float | None, difference: float | None) -> tuple[Literal["difference", "ratio"], float]:
    if (ratio is None) == (difference is None):
        raise InputError("a target promises either a ratio or a difference")
    return ("difference", difference) if ratio is None else ("ratio", ratio)


@dataclass(frozen=True)
class Floor:
    """A condition without which a claim says nothing: a mean must be at least a value, or the claim is void.

    The mean is taken over units, then over seeds.

    Attributes:
        arm: Arm that is looked at.
        metric: Its metric.
        at_least: The smallest value with which the claim can be judged.
        sentence: Why the claim is void below it, with a place for the value: "the full policy solves only
            {:.0%} of the episodes".
        against: Another arm; the value is then the gain over it.
        over: Another metric of the same arm; the value is then the share of it (the ratio of the means of a
            seed).
    """

    arm: str
    metric: str
    at_least: float
    sentence: str
    against: str | None = None
    over: str | None = None

    def met(self, value: float) -> bool:
        """Return whether the claim can be judged."""
        return value >= self.at_least


@dataclass(frozen=True)
class Ceiling:
    """The counterpart of `Floor`: a mean must be at most a value, or the claim is void (nothing left to gain).

    Attributes:
        arm: Arm that is looked at.
        metric: Its metric.
        at_most: The largest value with which the claim can be judged.
        sentence: Why the claim is void above it, with a place for the value.
        against: As in `Floor`.
        over: As in `Floor`.
    """

    arm: str
    metric: str
    at_most: float
    sentence: str
    against: str | None = None
    over: str | None = None

    def met(self, value: float) -> bool:
        """Return whether the claim can be judged."""
        return value <= self.at_most


@dataclass(frozen=True)
class Data:
    """Something of the user's that a claim needs at some scales, given as `--data name=value`.

    Attributes:
        name: Its name on the command line and in `Context.data`.
        about: What it is, with an example: "a file of problems and answers such as MATH-500's".
        scales: Scales that need it.
        kind: `path` (an existing file or folder) or `model` (a directory, a hub id or `testbed:<name>`).
    """

    name: str
    about: str
    scales: tuple[ScaleName, ...] = ("full",)
    kind: Literal["path", "model"] = "path"


@dataclass(frozen=True)
class Scale:
    """How much of a claim is run.

    Attributes:
        seeds: One process each, from the scale's range in `SEEDS`.
        time_limit: Seconds after which a (claim, seed) is stopped and reported as failed.
        settings: Sizes that `run` reads: number of prompts, steps, updates.
    """

    seeds: tuple[int, ...]
    time_limit: float
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What `prepare` and `run` are given besides the seed and the arm.

    Attributes:
        scale: The scale's name.
        settings: The scale's settings.
        model: The model the user named, or None for the testbed's own.
        device: "cpu", "cuda", ...
        folder: A folder of this (claim, seed) for artifacts; it exists, and survives until the report is
            written.
        progress: Call `progress(done, total, text)` to show progress; cheap.
        data: Name -> path or model that the user gave with `--data`, as far as the claim declares it.
    """

    scale: ScaleName
    settings: Mapping[str, Any]
    model: str | None
    device: str
    folder: Path
    progress: Callable[[int, int, str], None]
    data: Mapping[str, str] = field(default_factory=dict)


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
        scales: Scale name -> what is run; `smoke`, `quick` and `laptop` always, `full` where it exists. The scale
            `tune` is `laptop` on tuning seeds and needs no entry.
        prepare: `prepare(seed, context)` returns what the arms of this seed share. It is called once a process.
        run: `run(arm_name, shared, context) -> Measurement`, with what `prepare` returned.
        units: What one value of a list metric belongs to ("prompt", "problem", "episode", "image").
        columns: Metric name -> label, for the report's table, in order.
        preconditions: Conditions without which the claim is void.
        data: What the user has to give, at some scales.
        model_kind: What `--model` names, so that a folder of another kind is refused before any work; None where a
            claim looks for itself.
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
    prepare: Callable[[int, Context], Any]
    run: Callable[[str, Any, Context], Measurement]
    units: str
    columns: Mapping[str, str]
    preconditions: tuple[Floor | Ceiling, ...] = ()
    data: tuple[Data, ...] = ()
    model_kind: ModelKind | None = None
    version: int = 1

    def __post_init__(self) -> None:
        named = tuple(
            target if target.name else replace(target, name=self.columns.get(target.metric, target.metric))
            for target in self.targets
        )
        object.__setattr__(self, "targets", named)

    def scale(self, name: ScaleName) -> Scale | None:
        """Return what a scale runs, or None when the claim lacks it; `tune` is `laptop` on tuning seeds."""
        if name == "tune" and "laptop" in self.scales:
            laptop = self.scales["laptop"]
            seeds = tuple(FIRST_TUNING_SEED + number for number in range(len(laptop.seeds)))
            return replace(laptop, seeds=seeds)
        return self.scales.get(name)
