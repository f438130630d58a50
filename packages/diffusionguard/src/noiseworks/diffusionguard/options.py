"""The options of DiffusionGuard; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.protection.options import Budget, parse_transforms

NAMES = (
    "diffusionguard",
    "no-augmentation",
    "random",
    "photoguard",
    "photoguard-diffusion",
    "advdm",
    "mist",
    "sds",
    "sdst",
)


@dataclass(frozen=True)
class Guard(Options):
    """The objective and the masks that it is averaged over.

    Attributes:
        early_steps: Steps of the schedule whose first timestep is attacked: with 4 it is 751 of 1000.
        noise_norm: Of the predicted noise: l2, its square l2sq, or l1.
        contours: shrink draws a smaller contour of the given mask in every step, single keeps the given mask.
        strength: How far vertices move, relative to the radius.
        iterations: Largest number of shrinking rounds a mask.
        smoothness: Smoothing along the contour, relative to the radius.
        pool: Shrunk masks that are made for an image and drawn from.
        hardened: Transformations that gradients are averaged over, commas between: none, jpeg, resize, blur, noise;
            empty as in the paper.
        two_stages: Whether the U-Net's graph is freed before the encoder's is built: the larger of the two is held in
            memory instead of both, for one more pass of the encoder.
    """

    early_steps: Annotated[int, at_least(1), at_most(1000)] = 4
    noise_norm: Literal["l2", "l2sq", "l1"] = "l2"
    contours: Literal["shrink", "single"] = "shrink"
    strength: Annotated[float, above(0)] = 1.1
    iterations: Annotated[int, at_least(2)] = 15
    smoothness: Annotated[float, at_least(0)] = 0.1
    pool: Annotated[int, at_least(1)] = 64
    hardened: str = ""
    two_stages: bool = False

    def check(self) -> None:
        """Refuse unknown transformations.

        Raises:
            InputError: Naming one.
        """
        parse_transforms(self.hardened)


@dataclass(frozen=True)
class Strength(Budget):
    """How far an image may be changed, and how the change is found.

    Attributes:
        eps_255: Largest change of a pixel, in levels of 255 (norm l2: Euclidean norm of the change, in levels).
            16 is the paper's figure; the released code divides it by 255 in the model's range of 2, which is 8 here.
        step_255: Change of a pixel in one step, in levels of 255 (norm l2: the step's norm).
        steps: Gradient steps.
        norm: linf bounds every pixel, l2 the whole image.
        schedule: constant, or decaying linearly to a hundredth of the step, as in PhotoGuard.
        start: zero, or uniform within the budget.
        grad_reps: Gradients that are averaged in a step.
        seed: Image i draws from seed + i.
    """

    eps_255: Annotated[float, at_least(0), at_most(128)] = 16.0
    steps: Annotated[int, at_least(1)] = 800


@dataclass(frozen=True)
class Editing(Options):
    """How pictures are edited to see what a protection is worth.

    Attributes:
        prompt: What the editor is asked for.
        num_inference_steps: Steps of the editor.
        guidance_scale: Of the editor.
        edit_seed: Picture i is edited with the noise of edit_seed + i.
        purifiers: What the editor does to a picture first, with commas between; every one is reported.
    """

    prompt: str = "a photo"
    num_inference_steps: Annotated[int, at_least(1)] = 50
    guidance_scale: Annotated[float, at_least(1)] = 7.5
    edit_seed: Annotated[int, at_least(0)] = 0
    purifiers: str = "jpeg-75,crop-resize,adverse-cleaner"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The purifiers, one by one."""
        return tuple(name.strip() for name in self.purifiers.split(",") if name.strip())


def parse_methods(text: str) -> tuple[str, ...]:
    """Return names of defences from a text with commas between.

    Raises:
        InputError: When one is unknown or none is named.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise InputError(f"methods must be of {', '.join(NAMES)} with commas between, got {text!r}")
    return names
