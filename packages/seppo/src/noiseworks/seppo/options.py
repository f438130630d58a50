"""The options of SePPO; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.options import Options, above, at_least
from noiseworks.kits.image_tuning.options import LoraTuning

Flip = Literal["sign", "indicator", "none", "soft"]
Tie = Literal["worse", "neither"]
OpponentRule = Literal["all", "initial", "latest"]


@dataclass(frozen=True)
class Objective(Options):
    """The loss, and how it is decided what the opponent's image counts as.

    Attributes:
        kappa: Strength of a preference, for errors that are means over elements; half of Diffusion-DPO's beta.
        flip: Where the opponent explains the winner better than the tuned model does, its image counts as another
            winner (sign), as nothing (indicator) or as the loser that it is elsewhere (none); soft goes over smoothly.
        tie: What it counts as where both explain the winner equally well: worse, or neither, as a sign of 0 has it.
        softness: Difference of errors at which soft has made up its mind by three quarters.
        anchor_samples: Draws of timestep and noise by which that is decided; 1 is the draw of the loss, as published.
        shared_noise: Whether winner and opponent's image are noised by the same noise; they share the timestep always.
    """

    kappa: Annotated[float, above(0)] = 2500.0
    flip: Flip = "sign"
    tie: Tie = "worse"
    softness: Annotated[float, above(0)] = 1e-3
    anchor_samples: Annotated[int, at_least(1)] = 1
    shared_noise: bool = True


@dataclass(frozen=True)
class Opponents(Options):
    """Against which of its earlier selves the model plays.

    Attributes:
        opponents: All earlier checkpoints, one drawn uniformly; the initial model; or the latest checkpoint.
        updates_per_checkpoint: Optimiser steps between two checkpoints.
        redraw: Whether one is drawn for an iteration, all steps up to the next checkpoint, or for every update.
        reuse: Whether a checkpoint's image for a winner is drawn once and kept in the run's folder, instead of anew at
            each step; saves most of the time where winners come often.
    """

    opponents: OpponentRule = "all"
    updates_per_checkpoint: Annotated[int, at_least(1)] = 30
    redraw: Literal["iteration", "update"] = "iteration"
    reuse: bool = False

    def checkpoints(self, step: int) -> int:
        """Return how many checkpoints there are at a step, the initial model among them."""
        return step // self.updates_per_checkpoint + 1


@dataclass(frozen=True)
class Training(LoraTuning):
    """Length, optimiser, adapter, hardware and bookkeeping of the training: seven iterations as published.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Winners of an optimiser step, over all processes; 2048 in the paper.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: The gradient of an optimiser step is scaled down to this norm.
        lora_rank: Rank of the adapters on all attention projections.
        minibatch: Winners, each with its opponent's image, of one forward and backward pass, over all processes.
        weights: Type of the pipeline's own weights, which are frozen: float32, bfloat16 or float16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        seed: Of adapters, order of the winners, opponents and all noise.
        precision: 32-true, bf16-mixed or 16-mixed.
        devices: Number of processes, each with a device of its own; they change no number but in the last bits.
        strategy: How they share the work; auto is ddp for several processes.
        checkpoint_every: Minutes between two checkpoints of the run; 0 writes one after every step.
        log_every: Steps between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 210
    batch_size: Annotated[int, at_least(1)] = 128
    learning_rate: Annotated[float, above(0)] = 1e-4
    lora_rank: Annotated[int, at_least(1)] = 8
