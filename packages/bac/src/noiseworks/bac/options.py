"""The options of BAC; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Wholes, above, at_least, below
from noiseworks.core.output import check_file

Objective = Literal["pairwise", "adjacent"]
Metric = Literal["cosine", "mse", "l1", "l2", "wasserstein"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Scope = Literal["all", "ffn"]
Method = Literal["best", "block", "unified", "uniform"]
PICTURES = (".svg", ".png", ".webp")


@dataclass(frozen=True)
class Profiling(Options):
    """What is measured.

    Attributes:
        data: tabletop, or an NPZ file whose array `obs` is [n, To, Do].
        observations: How many observations are averaged.
        seed: Which observations and which noise; below 1000, as judging seeds are not profiled on.
        steps: Denoising steps K, by default those of the training.
        solver: ddpm or ddim.
        metrics: Commas between: cosine, mse, l1, l2, wasserstein.
    """

    data: str = "tabletop"
    observations: Annotated[int, at_least(1)] = 8
    seed: Annotated[int, at_least(0), below(1000)] = 11
    steps: Annotated[int | None, at_least(1)] = None
    solver: Literal["ddpm", "ddim"] = "ddpm"
    metrics: str = "cosine"

    @property
    def names(self) -> list[Metric]:
        """The metrics one by one."""
        return [name for name in self.metrics.split(",") if name]

    def check(self) -> None:
        """Refuse an unknown metric, or none.

        Raises:
            InputError: Naming it.
        """
        for name in self.names or [self.metrics]:
            check_choice("metrics", name, METRICS)


@dataclass(frozen=True)
class Checking(Options):
    """What plans are measured on: other observations than the profile's.

    Attributes:
        data: tabletop, or an NPZ file whose array `obs` is [n, To, Do].
        observations: Over how many observations errors are averaged.
        seed: Which observations and which noise; below 1000.
    """

    data: str = "tabletop"
    observations: Annotated[int, at_least(1)] = 16
    seed: Annotated[int, at_least(0), below(1000)] = 12


@dataclass(frozen=True)
class Schedule(Options):
    """How a plan is made from a profile.

    Attributes:
        updates: Steps M at which a block is computed before bubbling, step 0 among them; 1 to K.
        objective: pairwise (the authors' code) or adjacent (the formula that the paper prints).
        metric: Of the profile's metrics.
        bubble: Most volatile blocks that also update with the feed-forward blocks after them; 0 for none.
        bubble_scope: Which blocks may be among them: all, or ffn for feed-forward blocks only.
        force_last: Whether every block is computed at the last step too; without effect on uniform plans.
    """

    updates: Annotated[int, at_least(1)] = 10
    objective: Objective = "pairwise"
    metric: Metric = "cosine"
    bubble: Annotated[int, at_least(0)] = 5
    bubble_scope: Scope = "all"
    force_last: bool = True


@dataclass(frozen=True)
class Choice(Options):
    """Which plan is made.

    Attributes:
        method: best (the cheapest within the budget of the others at several numbers of updates; it needs --model),
            block (each its own schedule), unified (the first self-attention's for all) or uniform.
        budget: Largest error of the actions under the best plan, over the change that other noise makes.
        moved_to: Move the plan to another number of steps.
    """

    method: Method = "best"
    budget: Annotated[float, above(0)] = 0.25
    moved_to: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True)
class Timing(Options):
    """How arms are timed in turn.

    Attributes:
        batch_size: Observations of a timed replan.
        repeats: Timed replans of each arm.
    """

    batch_size: Annotated[int, at_least(1)] = 1
    repeats: Annotated[int, at_least(1)] = 5


@dataclass(frozen=True)
class Pictures(Options):
    """What a DiT pipeline draws.

    Attributes:
        labels: Class labels of a batch, commas between.
        pipeline_steps: Denoising steps of the full run.
        guidance_scale: Of classifier-free guidance.
    """

    labels: Annotated[Wholes, at_least(0)] = (0, 7, 14, 21)
    pipeline_steps: Annotated[int, at_least(1)] = 50
    guidance_scale: Annotated[float, at_least(1)] = 4.0


def check_picture(path: str | Path) -> Path:
    """Return the path of a picture that can be written.

    Raises:
        InputError: When its name ends otherwise or its folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in PICTURES:
        raise InputError(f"a picture's name must end with {', '.join(PICTURES)}, got {path.name!r}")
    return check_file(path)
