"""The options of Trajectory Diffuser; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.training.options import Fit


@dataclass(frozen=True)
class Architecture(Options):
    """The four networks, and the units of returns.

    Attributes:
        horizon: States of a plan, H; a multiple of 2^(levels - 1).
        draft: Network that drafts: transformer, lstm, gru or rnn.
        draft_width: Width of the transformer (half for the state, half for the return), or of the recurrent cell.
        draft_layers: Layers of the transformer.
        causal: Whether a position of the transformer sees only what is before it. The released code has no such mask,
            so that every position but the last is trained with the answer in view.
        features: Channels of the refiner's first level; every further level has twice as many.
        levels: Levels of the refiner.
        num_steps: Diffusion steps of training, T.
        schedule: linear, 0.001 to 0.02; cosine; or vp.
        hidden: Width of the two hidden layers of the inverse dynamics; the critic has half of it.
        return_scale: What returns are divided by. It is kept with the model.
    """

    horizon: Annotated[int, at_least(2)] = 32
    draft: Literal["transformer", "lstm", "gru", "rnn"] = "transformer"
    draft_width: Annotated[int, at_least(8)] = 512
    draft_layers: Annotated[int, at_least(1)] = 4
    causal: bool = True
    features: Annotated[int, at_least(8)] = 64
    levels: Annotated[int, at_least(1), at_most(6)] = 4
    num_steps: Annotated[int, at_least(1)] = 100
    schedule: Literal["linear", "cosine", "vp"] = "linear"
    hidden: Annotated[int, at_least(2)] = 256
    return_scale: Annotated[float, above(0)] = 1000.0

    def check(self) -> None:
        """Refuse a horizon that the levels cannot halve, and widths that heads and groups cannot share.

        Raises:
            InputError: Naming the multiple.
        """
        multiple = 2 ** (self.levels - 1)
        if self.horizon % multiple:
            raise InputError(
                f"horizon must be a multiple of {multiple} with {self.levels} levels, got {self.horizon}"
            )
        for name in ("draft_width", "features"):
            if getattr(self, name) % 8:
                raise InputError(f"{name} must be a multiple of 8, got {getattr(self, name)}")


@dataclass(frozen=True)
class Planning(Options):
    """How a plan is made and how much of it is played.

    Attributes:
        start: What is refined: draft, the draft model's states; or noise, as planners without a draft do.
        steps: Denoising steps. From a draft the last so many of the schedule; 0 plays the draft itself. From noise all
            of the schedule by default, and fewer by DDIM.
        guidance: Weight w of the wished return: 0 ignores it, 1 is the conditional model.
        candidates: Plans that are refined side by side, of which the critic picks one.
        temperature: Of that choice, on scaled returns; 0 takes the best.
        noisy_draft: Whether the draft gets the noise of the level at which it enters.
        context: Past states that the draft model reads; by default horizon - 1.
        execute: Actions that are played before the next plan.
        target: Return that the first plan of an episode wishes for; by default the best of the data.
        floor: Share of the target below which the wish does not fall.
    """

    start: Literal["draft", "noise"] = "draft"
    steps: Annotated[int | None, at_least(0)] = 5
    guidance: Annotated[float, at_least(0)] = 1.1
    candidates: Annotated[int, at_least(1)] = 32
    temperature: Annotated[float, at_least(0)] = 1.0
    noisy_draft: bool = False
    context: Annotated[int | None, at_least(1)] = None
    execute: Annotated[int, at_least(1)] = 1
    target: float | None = None
    floor: Annotated[float, at_least(0), at_most(1)] = 1 / 3

    def check(self) -> None:
        """Refuse 0 steps from noise, which would be no plan, and all steps from a draft.

        Raises:
            InputError: Saying so.
        """
        if self.start == "noise" and self.steps == 0:
            raise InputError("steps must be at least 1 when a plan starts from noise, got 0")
        if self.start == "draft" and self.steps is None:
            raise InputError(
                "give the steps after which a draft is a plan, such as 5; only noise takes all of them"
            )


@dataclass(frozen=True)
class Fitting(Fit):
    """Length, seed, rates and bookkeeping of training.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Windows of a batch, over all processes.
        learning_rate: Of Adam; it falls linearly to a hundredth, but for the critic.
        decay_steps: Steps over which it falls.
        average_from: Step from which the refiner's average is one; before it, it is a copy.
        parts: all networks, or the draft alone.
        clean_start: Whether the refiner sees the current state as it is at every level, as plans put it back. The
            released code scales it with the level, which hardly differs at late levels but does from noise.
    """

    max_steps: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 32
    learning_rate: Annotated[float, above(0)] = 2e-4
    decay_steps: Annotated[int, at_least(1)] = 100_000
    average_from: Annotated[int, at_least(0)] = 10_000
    parts: Literal["all", "draft"] = "all"
    clean_start: bool = False
