"""The options that protections share; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.checks import check_choice
from noiseworks.core.options import Options, above, at_least, at_most, below

TRANSFORM_NAMES = ("none", "jpeg", "resize", "blur", "noise")  # of `transforms`, which imports torch


def parse_transforms(text: str) -> tuple[str, ...]:
    """Return names of transformations from a text with commas between; none for an empty one.

    Raises:
        InputError: When one is unknown.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        check_choice("transformation", name, TRANSFORM_NAMES)
    return names


@dataclass(frozen=True)
class Budget(Options):
    """How far an image may be changed, and how the change is found.

    Attributes:
        eps_255: Largest change of a pixel, in levels of 255 (norm l2: Euclidean norm of the change, in levels).
        step_255: Change of a pixel in one step, in levels of 255 (norm l2: the step's norm).
        steps: Gradient steps.
        norm: linf bounds every pixel, l2 the whole image.
        schedule: constant, or decaying linearly to a hundredth of the step, as in PhotoGuard.
        start: zero, or uniform within the budget.
        grad_reps: Gradients that are averaged in a step.
        seed: Image i draws from seed + i.
    """

    eps_255: Annotated[float, at_least(0), at_most(128)] = 16.0
    step_255: Annotated[float, above(0)] = 1.0
    steps: Annotated[int, at_least(1)] = 100
    norm: Literal["linf", "l2"] = "linf"
    schedule: Literal["constant", "decaying"] = "constant"
    start: Literal["zero", "uniform"] = "zero"
    grad_reps: Annotated[int, at_least(1)] = 1
    seed: Annotated[int, at_least(0), below(2**62)] = 0

    def size(self, step: int) -> float:
        """Return the size of step k = 0 ... steps - 1, on the scale [0, 1]."""
        whole = self.step_255 / 255
        if self.schedule == "constant":
            return whole
        return whole - (whole - whole / 100) * step / self.steps
