"""The options of Diff-Protect; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.protection.options import parse_transforms

Name = Literal[
    "sds-",
    "sds+",
    "sdst-",
    "advdm+",
    "advdm-",
    "photoguard",
    "mist",
    "mist-",
    "texture-self",
    "sds-z",
    "random",
]
NAMES: tuple[str, ...] = Name.__args__


@dataclass(frozen=True)
class Method(Options):
    """Which protection, and what it aims at.

    Attributes:
        method: sds- and sds+ descend and ascend the denoising loss by score distillation, sdst- descends it along with
            the distance to a target; advdm+, advdm-, mist and mist- go through the U-Net; photoguard and texture-self
            only through the encoder; sds-z changes latents, outside of any budget of pixels; random is the control.
        prompt: A short caption of the pictures.
        target: Picture that targeted methods pull to, by default stripes.
        rate: Weight of the score in sdst-.
        posterior: Whether the encoder's posterior is sampled in every step, or its mean taken.
        purified_steps: Whether each gradient is taken at the picture after a weak denoising (Diff-PGD).
        hardened: Transformations that gradients are averaged over, commas between: none, jpeg, resize, blur, noise;
            empty as in the paper.
    """

    method: Name = "sds-"
    prompt: str = "a photo"
    target: Path | None = None
    rate: Annotated[float, above(0)] = 5.0
    posterior: Literal["sample", "mean"] = "sample"
    purified_steps: bool = False
    hardened: str = ""

    def check(self) -> None:
        """Refuse unknown transformations.

        Raises:
            InputError: Naming one.
        """
        parse_transforms(self.hardened)


@dataclass(frozen=True)
class Editing(Options):
    """How pictures are edited to see what a protection is worth.

    Attributes:
        edit_prompt: What the editor is asked for.
        strengths: Shares of the schedule that pictures are noised to (SDEdit), with commas between.
        num_inference_steps: Steps of the editor over the whole schedule.
        guidance_scale: Of the editor.
        edit_seed: Picture i is edited with the noise of edit_seed + i.
        purifiers: What the editor does to a picture first, with commas between; every one is reported.
    """

    edit_prompt: str = "a photo"
    strengths: str = "0.1,0.3,0.5"
    num_inference_steps: Annotated[int, at_least(1), at_most(1000)] = 50
    guidance_scale: Annotated[float, at_least(1)] = 7.5
    edit_seed: Annotated[int, at_least(0)] = 0
    purifiers: str = "jpeg-75,crop-resize,adverse-cleaner"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The purifiers, one by one."""
        return tuple(name.strip() for name in self.purifiers.split(",") if name.strip())

    @property
    def levels(self) -> tuple[float, ...]:
        """The strengths, one by one."""
        return tuple(float(part) for part in self.strengths.split(","))

    def check(self) -> None:
        """Refuse strengths outside of (0, 1].

        Raises:
            InputError: Naming them.
        """
        try:
            good = all(0 < level <= 1 for level in self.levels)
        except ValueError:
            good = False
        if not good:
            raise InputError(
                f"strengths must be above 0 and at most 1, commas between, got {self.strengths!r}"
            )


def parse_methods(text: str) -> tuple[str, ...]:
    """Return names of protections from a text with commas between.

    Raises:
        InputError: When one is unknown or none is named.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or any(name not in NAMES for name in names):
        raise InputError(f"methods must be of {', '.join(NAMES)} with commas between, got {text!r}")
    return names
