"""The options of the commands; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least, at_most, below
from noiseworks.kits.training.options import Fit

ANCHORS = "diffusiondrive/anchors"  # the kind of artifact that the verb anchors writes
Stepping = Literal["reference", "consistent"]
Design = Literal["diffusiondrive", "no_cascade", "regression", "anchors", "diffusion"]


@dataclass(frozen=True)
class Architecture(Options):
    """Sizes of a planner.

    Attributes:
        design: diffusiondrive; no_cascade, one decoder layer that does not look at the view along the plan;
            regression, one plan by an L1 loss; anchors, which of the anchors to take; or diffusion, from pure noise.
        width: Channels d of features and queries, a multiple of 8.
        modes: Anchors N.
        layers: Cascaded decoder layers.
        ffn_residual: Whether the decoder's feed-forward blocks add their input, which the authors' do not.
        learned_skip: Whether a decoder layer's plan is an offset to a learned share of its noisy points, where the
            authors' is to all of them. The noise on an anchor says nothing about the plan: short trainings that need
            not take it off point by point learn to plan sooner.
        draws: Noisy plans of each scene that a training step of a diffusion design regresses, the authors' 1. More of
            them have the same expectation and less noise, and share the scene's part.
    """

    design: Design = "diffusiondrive"
    width: Annotated[int, at_least(8)] = 64
    modes: Annotated[int, at_least(2), at_most(256)] = 20
    layers: Annotated[int, at_least(1), at_most(4)] = 2
    ffn_residual: bool = False
    learned_skip: bool = False
    draws: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse a width that eight attention heads cannot share.

        Raises:
            InputError: Naming the width.
        """
        if self.width % 8:
            raise InputError(f"width must be a multiple of 8, got {self.width}")


def architecture_of(design: Design, width: int, draws: int) -> Architecture:
    """Return the sizes of one of the designs that the claim trains together."""
    return Architecture(design=design, width=width, learned_skip=True, draws=draws)


@dataclass(frozen=True)
class Denoising(Options):
    """How a plan is denoised.

    Attributes:
        stepping: reference, as the released code does it: the first call's prediction moves the plan from level 10 to 9
            only; or consistent, which moves it to the next level that is evaluated.
        steps: Network calls S. Their levels are round(20 i / S) for i = S - 1 to 0: 10 and 0 for two.
        start: Level of the noise on the anchors; by default 8 for reference and the first level for consistent.
        seed: Of the noise.
    """

    stepping: Stepping = "reference"
    steps: Annotated[int, at_least(1), at_most(20)] = 2
    start: Annotated[int | None, at_least(0), below(1000)] = None
    seed: Annotated[int, at_least(0), below(2**63)] = 0


@dataclass(frozen=True)
class SceneSet(Options):
    """Scenes of the testbed `drive`, or of the user's.

    Attributes:
        scenes: How many of the testbed's.
        scene_seed: Of the set; scene i depends on seed and i alone.
        commanded: Whether the planner is told which way to turn.
        data: Folder of .npz files of scenes and `plans` instead, as the verb scenes writes them.
    """

    scenes: Annotated[int, at_least(2)] = 1000
    scene_seed: Annotated[int, at_least(0), below(2**31)] = 0
    commanded: bool = False
    data: str | None = None


@dataclass(frozen=True)
class Fitting(Fit):
    """Length, seed, hardware and bookkeeping of a training run.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Scenes of a batch, over all processes.
        learning_rate: Peak of AdamW's rate: up over the first 3 % of the steps, then along a cosine to 1e-6.
    """

    max_steps: Annotated[int, at_least(1)] = 6000
    batch_size: Annotated[int, at_least(1)] = 64
    learning_rate: Annotated[float, at_least(0)] = 6e-4


@dataclass(frozen=True)
class Timing(Options):
    """How speed is measured.

    Attributes:
        batches: Scenes that are planned at once, one after the other.
        turns: Plans of each that are timed.
        threads: Of the processor; by default all of them.
    """

    batches: tuple[int, int] = (1, 64)
    turns: Annotated[int, at_least(1)] = 20
    threads: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse a batch without scenes.

        Raises:
            InputError: Naming the batches.
        """
        if min(self.batches) < 1:
            raise InputError(f"batches must hold at least one scene, got {self.batches}")
