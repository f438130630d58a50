"""The options of black-scholes; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least

Volatility = Literal["auto", "posterior", "stride", "table"]
POLICIES = ("bs", "softmin", "clip-min", "alternating", "switch", "linear")


@dataclass(frozen=True)
class Pricing(Options):
    """How concepts are priced.

    Attributes:
        strike: Match at which a concept counts as reached, the same for all concepts; `calibrate` finds one for each.
        volatility: Of the scheduler: posterior (one training timestep, as released), stride (the sampler's step), table
            (sigma at the step), or auto: posterior where there is one, else table (flow models).
        window: Steps over which the score's own volatility is measured, with the scheduler's as its floor; 0 takes the
            scheduler's alone. Our addition.
        choice: min (the cheapest concept conditions the next step) or softmin (a blend; our addition).
        kappa: Temperature of softmin on log prices; 0 is min.
        price: cdf, or released-density: the released code's formula, which is 0 for all arguments and decides by
            rounding errors.
    """

    strike: Annotated[float, above(0)] = 100.0
    volatility: Volatility = "auto"
    window: Annotated[int, at_least(0)] = 0
    choice: Literal["min", "softmin"] = "min"
    kappa: Annotated[float, at_least(0)] = 1.0
    price: Literal["cdf", "released-density"] = "cdf"

    def check(self) -> None:
        """Refuse a measured volatility over one step."""
        if self.window == 1:
            raise InputError("window must be 0 or at least 2: one score has no returns")


@dataclass(frozen=True)
class Watching(Options):
    """How the image in the making is looked at.

    Attributes:
        scorer: A CLIP model of transformers: a directory, a hub id or testbed:shapes-clip; needed by bs, softmin and
            clip-min.
        score_every: Steps between two looks; choices stay in between.
        forecast: pre (x0 of the step's own prediction), or released (x0 from the latents after the step with the
            prediction before it, as the released code does; DDIM and DDPM only).
    """

    scorer: str | None = None
    score_every: Annotated[int, at_least(1)] = 1
    forecast: Literal["pre", "released"] = "pre"


@dataclass(frozen=True)
class Choosing(Options):
    """What decides.

    Attributes:
        policy: bs (the paper's), softmin, clip-min, alternating, switch, linear, or syntax: what the brackets of the
            prompts ask for, such as a [red|blue] car or a [cat:dog:0.3].
        strikes: A file of strikes, one a concept, that `calibrate` wrote.
    """

    policy: Literal["bs", "softmin", "clip-min", "alternating", "switch", "linear", "syntax"] = "bs"
    strikes: Path | None = None


@dataclass(frozen=True)
class Contest(Options):
    """What is compared.

    Attributes:
        policies: Names separated by commas; plain (the first concept alone) and joined (all concepts in one prompt) are
            drawn without blending.
        joint: What stands between the concepts in the joined prompt.
        judge: A CLIP model that scores the results; by default the scorer, which favours what selects by it.
    """

    policies: str = "plain,joined,linear,alternating,switch,clip-min,bs"
    joint: str = " and "
    judge: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The policies."""
        return tuple(name.strip() for name in self.policies.split(","))

    def check(self) -> None:
        """Refuse unknown policies."""
        known = ("plain", "joined", *POLICIES)
        for name in self.names:
            if name not in known:
                raise InputError(f"no policy {name!r}; there are {', '.join(known)}")
        if len(set(self.names)) < len(self.names):
            raise InputError(f"policies names one twice: {self.policies}")


def split_concepts(lines: list[str]) -> list[list[str]]:
    """Return the concepts of each line, written as `a rabbit | a teapot`.

    Raises:
        InputError: When a line has fewer than two, or another number than the first line.
    """
    rows = [[text.strip() for text in line.split("|")] for line in lines]
    for line, row in zip(lines, rows, strict=True):
        if len(row) < 2 or not all(row):
            raise InputError(f'{line!r} needs at least two concepts: write them as "a rabbit | a teapot"')
        if len(row) != len(rows[0]):
            raise InputError(
                f"{line!r} has {len(row)} concepts and the first line {len(rows[0])}: use one number"
            )
    return rows
