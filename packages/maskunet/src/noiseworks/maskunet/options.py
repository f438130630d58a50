"""The options of MaskUNet; nothing heavy is imported."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training.options import Fit

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
TUNABLE = ("sd", "sdxl", "sd3", "flux")


@dataclass(frozen=True)
class MaskConfig(Options):
    """What is masked, and how a mask comes about.

    Attributes:
        generator: paper, released (static in effect, for comparison), rank-k (logits u v') or static (one learned logit
            a weight).
        granularity: element (every weight), row (output channels of a layer) or head (heads of attention).
        conditioning: What masks depend on: both, time or sample.
        targets: auto (attention projections, in U-Nets of the up blocks), or a regular expression that the path of a
            linear layer must contain a match of.
        factor: f, by which the coarse mask of paper and released is smaller than the block.
        hidden: Width of the generator.
        rank: k of rank-k.
        tau: Temperature of the Gumbel sigmoid's gradient.
        threshold: delta, above which a mask is 1.
        init_logit: Logit that all weights begin with.
    """

    generator: Literal["paper", "released", "rank-k", "static"] = "paper"
    granularity: Literal["element", "row", "head"] = "element"
    conditioning: Literal["both", "time", "sample"] = "both"
    targets: str = "auto"
    factor: Annotated[int, at_least(1)] = 4
    hidden: Annotated[int, at_least(1)] = 64
    rank: Annotated[int, at_least(1)] = 4
    tau: Annotated[float, above(0)] = 1.0
    threshold: Annotated[float, above(0), below(1)] = 0.5
    init_logit: float = 5.0

    def check(self) -> None:
        """Refuse a broken expression, and released masks of rows, which the released code does not have.

        Raises:
            InputError: Naming the option.
        """
        try:
            re.compile(self.targets)
        except re.error as error:
            raise InputError(f"targets is no regular expression: {error}") from None
        if self.generator == "released" and self.granularity != "element":
            raise InputError(
                f"generator released masks elements, got granularity {self.granularity}: take generator paper"
            )


@dataclass(frozen=True)
class Training(Fit):
    """Length, optimiser, hardware and bookkeeping of a training of masks.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Images of a step, over all processes.
        learning_rate: AdamW's, constant.
        max_grad_norm: The gradient of a step is scaled down to this norm.
        ema: Largest decay of the average of the generator's weights, which is what is kept.
        flip: Whether half of the images are flipped.
        seed: Of the generator, the order of images, timesteps, noise and masks.
        precision: 32-true or bf16-mixed.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: Number of processes, each with a device of its own.
        strategy: How they share the work; auto is ddp for several processes.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every step.
        log_every: Steps between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 9000
    learning_rate: Annotated[float, above(0)] = 1e-5
    max_grad_norm: Annotated[float, above(0)] = 1.0
    ema: Annotated[float, at_least(0), below(1)] = 0.999
    flip: bool = False
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    strategy: Literal["auto", "ddp"] = "auto"


@dataclass(frozen=True)
class Use(Options):
    """How trained masks are used.

    Attributes:
        stochastic: Draw masks instead of keeping every weight whose logit is above the threshold.
        mask_seed: Of drawn masks: row i of a batch has a stream of its own.
    """

    stochastic: bool = False
    mask_seed: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class RewardSchedule(Options):
    """How masks are optimised at inference.

    Attributes:
        iterations: Iterations of every step after the warm ones.
        warm_steps: First steps, which have one iteration with random masks (7 in the released code).
        mask_rate: AdamW's learning rate.
        mask_decay: AdamW's weight decay.
        start_logit: Logit that all weights have before every step; 1 switches 6.6 % of them off.
        reuse_last: before-update (the latent of the last iteration, as released) or after-update (one more pass with
            what was learned last).
        solver_state: keep the history of a multistep solver, or begin anew at every step as released.
        optimise_seed: Of the masks; sample i has the stream of optimise_seed + i.
    """

    iterations: Annotated[int, at_least(1)] = 10
    warm_steps: Annotated[int, at_least(0)] = 7
    mask_rate: Annotated[float, at_least(0)] = 1e-2
    mask_decay: Annotated[float, at_least(0)] = 0.01
    start_logit: float = 1.0
    reuse_last: Literal["before-update", "after-update"] = "before-update"
    solver_state: Literal["keep", "released"] = "keep"
    optimise_seed: Annotated[int, at_least(0)] = 0

    def passes(self, steps: int) -> int:
        """Return how often the denoiser is evaluated for a sample of `steps` steps."""
        warm = min(self.warm_steps, steps)
        return warm + (steps - warm) * (self.iterations + (self.reuse_last == "after-update"))


@dataclass(frozen=True)
class Scorers(Options):
    """What images are optimised for.

    Attributes:
        rewards: Differentiable scorers with commas between, each name:weight: brightness, redness, greenness or
            blueness, clip=FOLDER (a CLIP model's directory or hub id) or module=function of your own, called with
            images [n, 3, H, W] and prompts.
    """

    rewards: str = "redness:1"

    def check(self) -> None:
        """Refuse what is no list of names and weights.

        Raises:
            InputError: Naming the entry.
        """
        _ = self.weighted

    @property
    def weighted(self) -> tuple[tuple[str, float], ...]:
        """The names and their weights."""
        found = []
        for part in filter(None, (part.strip() for part in self.rewards.split(","))):
            name, _, weight = part.rpartition(":")
            try:
                found.append((name or part, float(weight) if name else 1.0))
            except ValueError:
                raise InputError(f"rewards: {part!r} is no name:weight") from None
        if not found:
            raise InputError("rewards names no scorer: give one such as redness:1")
        return tuple(found)


@dataclass(frozen=True)
class RandomMasks(Options):
    """Masks that nothing was learned for: the paper's motivating experiment.

    Attributes:
        keep: Share of the weights that stays.
        which: random weights go, the smallest or the largest of each layer.
        first_step: The first denoising step with masks, from 0.
        last_step: The step behind the last one with masks; by default the end.
        random_seed: Of the masks, the same for all samples.
    """

    keep: Annotated[float, above(0), at_most(1)] = 0.95
    which: Literal["random", "smallest", "largest"] = "random"
    first_step: Annotated[int, at_least(0)] = 0
    last_step: Annotated[int | None, at_least(1)] = None
    random_seed: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse an empty range of steps.

        Raises:
            InputError: Naming both ends.
        """
        if self.last_step is not None and self.last_step <= self.first_step:
            raise InputError(f"last_step ({self.last_step}) must be above first_step ({self.first_step})")


@dataclass(frozen=True)
class Pictures(Options):
    """What masks are trained on.

    Attributes:
        data: A folder of images with `metadata.jsonl`, one line such as {"file_name": "a.png", "text": "..."} an image.
        size: Side of the images in pixels, cut from the middle; the pipeline's own by default.
    """

    data: Path
    size: Annotated[int | None, at_least(8)] = None


@dataclass(frozen=True)
class Compared(Scorers):
    """What is compared beside plain drawing, and by which scorers.

    Attributes:
        rewards: Differentiable scorers with commas between, each name:weight, as of optimise.
        masks: Folder of trained masks, which take part where it is given.
        best_of: Images that the best one of is taken; by default as many as the optimised run has passes.
    """

    masks: Path | None = None
    best_of: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True)
class Bench(Options):
    """What the fused path is timed on.

    Attributes:
        batch: Rows.
        width: Channels of the masked layers; 320, 640 and 1280 in Stable Diffusion 1.5.
        tokens: Tokens a row.
        generator: paper or rank-k.
        repeats: Turns.
    """

    batch: Annotated[int, at_least(1)] = 8
    width: Annotated[int, at_least(8)] = 320
    tokens: Annotated[int, at_least(1)] = 64
    generator: Literal["paper", "rank-k"] = "paper"
    repeats: Annotated[int, at_least(1)] = 5
