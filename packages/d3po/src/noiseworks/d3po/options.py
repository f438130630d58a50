"""The options of D3PO; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.kits.image_tuning.options import Tuning

PairMode = Literal["all", "best_worst", "adjacent"]


@dataclass(frozen=True)
class Source(Options):
    """Where preferences come from: prompts whose new images the reward orders, or labels of images that sample drew.

    Attributes:
        prompts: A text file with one prompt a line, or one prompt.
        data: Folder of sample.
        labels: A JSON file with one list of numbers a prompt, larger for better images, a file that label wrote, or a
            folder of such files.
    """

    prompts: str | None = None
    data: Path | None = None
    labels: Path | None = None

    def check(self) -> None:
        """Refuse neither and both.

        Raises:
            InputError: Naming what to give.
        """
        if (self.data is None) != (self.labels is None) or (self.prompts is None) == (self.data is None):
            raise InputError("give either prompts, or both data and labels")


@dataclass(frozen=True)
class Preference(Options):
    """What is compared, and how strongly it counts.

    Attributes:
        copies: K, images of a prompt that are compared with each other.
        pairs: Which of them: all, best_worst (one pair a prompt) or adjacent (in the order of their scores).
        shared_start: Whether the images of a prompt start from the same noise.
        beta: Strength of the preference; the published one, for Stable Diffusion.
        clamp_eps: A step's probability ratio counts within 1 - eps and 1 + eps; none switches it off.
    """

    copies: Annotated[int, at_least(2)] = 2
    pairs: PairMode = "all"
    shared_start: bool = True
    beta: Annotated[float, above(0)] = 0.1
    clamp_eps: Annotated[float | None, above(0), below(1)] = 0.1


@dataclass(frozen=True)
class Training(Tuning):
    """Length, optimiser, adapter, hardware and bookkeeping of the training, as published for Stable Diffusion.

    Attributes:
        max_steps: Rounds of the whole run, each of rollouts and optimiser steps on them.
        batch_size: Prompts of a round, over all processes.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: The gradient of an optimiser step is scaled down to this norm.
        lora_rank: Rank of the adapters on all attention projections.
        minibatch: Prompts (with all their images) of one forward and backward pass, over all processes.
        accumulate: Minibatches of an optimiser step; each counts with all of its denoising steps.
        inner_epochs: How often a round's rollouts are gone through.
        timestep_fraction: Share of each prompt's denoising steps that are trained on, drawn at random.
        weights: Type of the pipeline's own weights, which are frozen: float32, bfloat16 or float16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        pictures_every: Rounds between two pictures of samples in the folder; 0 writes none.
        seed: Of adapters, prompts, rollouts and order.
        precision: 32-true, bf16-mixed or 16-mixed.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: Number of processes, each with a device of its own; they change no number but in the last bits.
        strategy: How they share the work; auto is ddp for several processes.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every round.
        log_every: Rounds between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 400
    batch_size: Annotated[int, at_least(1)] = 20
    learning_rate: Annotated[float, above(0)] = 3e-5
    minibatch: Annotated[int, at_least(1)] = 1
