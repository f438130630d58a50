"""The options of B2-DiffuRL; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.kits.image_tuning.options import Tuning

Direction = Literal["backward", "forward", "none"]


@dataclass(frozen=True)
class Stages(Options):
    """Which denoising steps are trained when. A run's rounds are its stages.

    Attributes:
        left: Steps that are trained in the first stage.
        right: Steps that are trained in the last stage.
        direction: backward trains the last steps first, as published, forward the first ones (a control), none always
            trains all.
    """

    left: Annotated[int, at_least(1)] = 14
    right: Annotated[int, at_least(1)] = 20
    direction: Direction = "backward"

    def check(self) -> None:
        """Refuse an interval that would shrink.

        Raises:
            InputError: Naming both ends.
        """
        if self.left > self.right:
            raise InputError(f"left must be at most right, {self.right}, got {self.left}")

    def fits(self, steps: int) -> None:
        """Refuse more trained steps than a sampler has.

        Raises:
            InputError: Naming both numbers.
        """
        if self.direction != "none" and self.right > steps:
            raise InputError(f"right must be at most the {steps} steps of the sampler, got {self.right}")

    def split(self, stage: int, stages: int) -> int:
        """Return how many steps a stage trains, `s_n = L + floor(n (R - L + 1) / M)`.

        Args:
            stage: n, from 0.
            stages: M.
        """
        return self.left + stage * (self.right - self.left + 1) // stages

    def interval(self, stage: int, stages: int, steps: int) -> range:
        """Return the places of the steps that a stage trains, of a sampler with `steps` of them, noisiest first."""
        count = self.split(stage, stages)
        return {
            "backward": range(steps - count, steps),
            "forward": range(count),
            "none": range(steps),
        }[self.direction]


@dataclass(frozen=True)
class Branching(Options):
    """What is compared, and which of it teaches.

    Attributes:
        branches: K, rollouts of a prompt that part where the trained steps begin.
        branching: Whether they share what comes before; without it each has noise of its own from the start.
        positive: The best branch teaches when its normalised reward is at least this.
        negative: The worst branch teaches when its normalised reward is below this.
        positive_weight: Weight of good branches.
        negative_weight: Weight of bad branches.
        clip: How far the probability ratio of a step may go.
        history: Earlier stages of a prompt whose rewards count in its mean and spread.
    """

    branches: Annotated[int, at_least(2)] = 5
    branching: bool = True
    positive: float = 0.5
    negative: float = -0.5
    positive_weight: Annotated[float, at_least(0)] = 1.0
    negative_weight: Annotated[float, at_least(0)] = 1.0
    clip: Annotated[float, above(0), below(1)] = 0.1
    history: Annotated[int, at_least(0)] = 8

    def check(self) -> None:
        """Refuse thresholds between which a branch would be good and bad.

        Raises:
            InputError: Naming both.
        """
        if self.negative > self.positive:
            raise InputError(f"negative must be at most positive, {self.positive}, got {self.negative}")


@dataclass(frozen=True)
class Training(Tuning):
    """Length, optimiser, adapter, hardware and bookkeeping of the training, as published for Stable Diffusion.

    Attributes:
        max_steps: Stages of the whole run, each of rollouts and optimiser steps on them.
        batch_size: Prompts (groups of branches) of a stage, over all processes.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: The gradient of an optimiser step is scaled down to this norm.
        lora_rank: Rank of the adapters on all attention projections.
        minibatch: Branches of one forward and backward pass, over all processes.
        accumulate: Minibatches of an optimiser step; each counts with all of its trained steps.
        inner_epochs: How often the chosen branches are gone through.
        timestep_fraction: Share of the trained steps that each branch is trained on, drawn at random.
        weights: Type of the pipeline's own weights, which are frozen: float32, bfloat16 or float16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        pictures_every: Stages between two pictures of samples in the folder; 0 writes none.
        seed: Of adapters, prompts, rollouts and order.
        precision: 32-true, bf16-mixed or 16-mixed.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: Number of processes, each with a device of its own; they change no number but in the last bits.
        strategy: How they share the work; auto is ddp for several processes.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every stage.
        log_every: Stages between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 100
    batch_size: Annotated[int, at_least(1)] = 256
    learning_rate: Annotated[float, above(0)] = 1e-4
    minibatch: Annotated[int, at_least(1)] = 2
    accumulate: Annotated[int, at_least(1)] = 64
    inner_epochs: Annotated[int, at_least(1)] = 2
