"""The options of real-time iteration; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.rti_dp.published import published_steps

Stepping = Literal["consistent", "reference"]
StepNoise = Literal["posterior", "none"]
# High enough for the testbeds' noisy demonstrations, where the papers' low starts solve nothing.
STEPS = (75, 30, 0)


@dataclass(frozen=True)
class Iteration(Options):
    """How a replan starts from the last plan.

    Attributes:
        steps: Denoising indices of a warm replan, decreasing to 0 with commas between; or the authors' for
            TASK:MODE:OBSERVATION, such as square:scale:lowdim.
        discrete: Discrete dimensions: none, or DIMS:MODE:FACTOR with mode clip or scale, such as 2:clip:10.
        stepping: consistent, or reference (each step leads to k - 1).
        solver: ddpm or ddim.
        noise: posterior, or none for the mean of the warm steps.
        execute: Actions executed of each prediction.
        initial_steps: Network calls of an episode's first replan; all of the training's by default.
        refresh_every: Warm replans after which an environment starts cold again.
    """

    steps: str = ",".join(map(str, STEPS))
    discrete: str = "none"
    stepping: Stepping = "consistent"
    solver: Literal["ddpm", "ddim"] = "ddpm"
    noise: StepNoise = "posterior"
    execute: Annotated[int, at_least(1)] = 1
    initial_steps: Annotated[int | None, at_least(1)] = None
    refresh_every: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse words that are no list or no discrete dimensions.

        Raises:
            InputError: Naming them.
        """
        parse_steps(self.steps)
        parse_discrete(self.discrete)


@dataclass(frozen=True)
class Choice(Options):
    """How a list of steps is chosen from recorded episodes.

    Attributes:
        nfe: Length of the list.
        discrete: Discrete dimensions as in eval; they are left out of the choice.
        c: Factor of the residual that the first step's noise has to cover.
        pairs: Pairs of neighbouring steps that are compared.
        seed: Of the choice of pairs and of the noise.
    """

    nfe: Annotated[int, at_least(1)] = 3
    discrete: str = "none"
    c: Annotated[float, above(0)] = 1.0
    pairs: Annotated[int, at_least(1)] = 128
    seed: Annotated[int, at_least(0), below(2**63)] = 0

    def check(self) -> None:
        """Refuse words that are no discrete dimensions.

        Raises:
            InputError: Naming them.
        """
        parse_discrete(self.discrete)


def parse_steps(text: str) -> tuple[int, ...]:
    """Return the indices of a list such as `75,30,0`, or of the authors' `TASK:MODE:OBSERVATION`.

    Raises:
        InputError: When a word is no whole number, or there is no such list.
    """
    if ":" in text:
        task, mode, *rest = text.split(":")
        return published_steps(task, mode, ":".join(rest) or "lowdim")
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(f"steps must be whole numbers such as 75,30,0, got {text!r}") from error


def parse_discrete(text: str) -> tuple[tuple[int, ...], str, float]:
    """Return dimensions, mode and factor of `none`, or of `DIMS:MODE[:FACTOR]` such as `2:clip:10` or `9,19:scale`.

    Raises:
        InputError: When the text has another form.
    """
    if text == "none":
        return (), "none", 10.0
    parts = text.split(":")
    try:
        dims = tuple(int(word) for word in parts[0].split(","))
        factor = float(parts[2]) if len(parts) == 3 else 10.0
    except ValueError:
        parts = []
    if not 2 <= len(parts) <= 3:
        raise InputError(f"discrete must be none or DIMS:MODE:FACTOR such as 2:clip:10, got {text!r}")
    return dims, parts[1], factor


def parse_dims(text: str) -> list[int]:
    """Return the whole numbers of a list such as `2` or `6,13`.

    Raises:
        InputError: When a word is no whole number.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"dims must be whole numbers separated by commas, got {text!r}") from error
