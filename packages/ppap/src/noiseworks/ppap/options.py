"""The options of PPAP; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Hardware, Options, above, at_least, below
from noiseworks.kits.training.options import Fit

Start = Literal["chain", "fresh"]
Norm = Literal["none", "per-sample", "released"]


@dataclass(frozen=True)
class Adapters(Options):
    """The experts, and what of the guide each of them has for itself.

    Attributes:
        experts: N, each of which owns an interval of the timesteps; 1 is the single student.
        spacing: even intervals of the timesteps, or of the logarithm of signal to noise.
        rank: gamma, of the low-rank changes of weights.
        alpha: A change is scaled by alpha / rank.
        targets: A regular expression of the layers that are changed; auto takes the published ones of ResNets and
            vision transformers, and all but the last one of other networks.
        tuned: adapters with biases and norms, or all weights of the guide.
    """

    experts: Annotated[int, at_least(1)] = 5
    spacing: Literal["even", "snr"] = "even"
    rank: Annotated[int, at_least(1)] = 16
    alpha: Annotated[float, above(0)] = 8.0
    targets: str = "auto"
    tuned: Literal["adapters", "all"] = "adapters"


@dataclass(frozen=True)
class Transfer(Fit):
    """How experts learn from the guide.

    Attributes:
        max_steps: Optimiser steps of all experts together.
        batch_size: Images of a step.
        learning_rate: Of AdamW; falls along a line to 0 for each expert.
        weight_decay: AdamW's.
        start: chain begins with the expert before and keeps the optimiser's state, as released; fresh begins with the
            guide.
        flip: Whether images are mirrored by chance (pixel pipelines).
        seed: Of the first values, the order of the images, noise and timesteps.
        precision: 32-true or bf16-mixed.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: 1, the number of processes.
        strategy: auto.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every step.
        log_every: Steps between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 300_000
    batch_size: Annotated[int, at_least(1)] = 256
    learning_rate: Annotated[float, above(0)] = 1e-4
    weight_decay: Annotated[float, at_least(0)] = 0.05
    start: Start = "chain"
    flip: bool = True
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    devices: Literal[1] = 1
    strategy: Literal["auto"] = "auto"


@dataclass(frozen=True)
class Synthesis(Options):
    """The images that the model makes for the transfer.

    Attributes:
        images: How many; published are 500,000.
        batch: How many at a time.
    """

    images: Annotated[int, at_least(1)] = 500_000
    batch: Annotated[int, at_least(1)] = 100


@dataclass(frozen=True)
class Strength(Options):
    """How hard is guided.

    Attributes:
        scale: s, on the gradient of the log-probability.
        norm: per-sample gives each sample's gradient the length of the noisy sample first, for guides whose gradients
            have no natural scale, such as depth; released takes the norms of the whole batch and of its first sample.
        through: sample lets the guide look at the noisy sample, denoised at what the denoiser makes of it, clipped as
            the scheduler does, with a backward pass through the denoiser (pixel pipelines).
    """

    scale: Annotated[float, at_least(0)] = 7.5
    norm: Norm = "none"
    through: Literal["sample", "denoised"] = "sample"


@dataclass(frozen=True)
class Guided(Options):
    """The guide.

    Attributes:
        guide: An image-classification, depth-estimation or segmentation model of transformers: a directory or hub id.
        temperature: Of a classifier's probabilities, as its experts learn them.
    """

    guide: Path
    temperature: Annotated[float, above(0)] = 0.25


@dataclass(frozen=True, kw_only=True)
class Drawing(Hardware):
    """What is drawn.

    Attributes:
        model: A diffusers pipeline of pixels or latents: a directory, a hub id or testbed:<name>.
        prompt: Of all images, where the model takes one; the number of a class for DiT.
        steps: Denoising steps (by DDIM where there is no prompt).
        seed: Of image i is seed + i.
        device: auto (the GPU if there is one), cpu, cuda, cuda:N or mps.
        dtype: Type of the weights: auto (float32), float32, bfloat16 or float16.
    """

    model: str
    prompt: str = ""
    steps: Annotated[int, at_least(1)] = 25
    seed: Annotated[int, at_least(0), below(2**32)] = 0


@dataclass(frozen=True)
class Wanted(Options):
    """What the guide shall see.

    Attributes:
        labels: Numbers of classes, with commas between, each of which gets `copies` images; 0 when a command is given
            neither labels nor a map.
        map: A .npy file instead: depths (H, W), or the class of each pixel.
        copies: Images of each.
    """

    labels: str | None = None
    map: Path | None = None
    copies: Annotated[int, at_least(1)] = 4

    def check(self) -> None:
        """Refuse neither and both, and labels that are no numbers.

        Raises:
            InputError: Naming what to give.
        """
        if (self.labels is None) == (self.map is None):
            raise InputError("give either labels or a map")
        self.classes()

    def classes(self) -> list[int]:
        """Return the labels; none where a map is given.

        Raises:
            InputError: When one is no number of a class.
        """
        words = [] if self.labels is None else self.labels.split(",")
        if not all(word.strip().isdecimal() for word in words):
            raise InputError(f"labels must be numbers of classes with commas between, got {self.labels!r}")
        return [int(word) for word in words]
