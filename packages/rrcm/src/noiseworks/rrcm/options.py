"""The options of pre-training, fine-tuning and certification; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training.options import Fit


@dataclass(frozen=True)
class Network(Options):
    """The sizes of the encoder and of the projector that only pre-training has.

    Attributes:
        depth: Blocks.
        width: Of the tokens.
        heads: Of attention.
        patch: Side of a patch.
        mlp: Width of the MLP over that of the tokens.
        hidden: Width inside the projector.
        projected: Width of what the contrastive part compares.
    """

    depth: Annotated[int, at_least(1)] = 4
    width: Annotated[int, at_least(2)] = 64
    heads: Annotated[int, at_least(1)] = 4
    patch: Annotated[int, at_least(1)] = 2
    mlp: Annotated[float, above(0)] = 4.0
    hidden: Annotated[int, at_least(1)] = 256
    projected: Annotated[int, at_least(1)] = 64

    def check(self) -> None:
        """Refuse a width that the heads or the time's sines and cosines cannot share.

        Raises:
            InputError: Naming the option.
        """
        if self.width % (2 * self.heads):
            raise InputError(f"width must be a multiple of twice the heads ({self.heads}), got {self.width}")


@dataclass(frozen=True)
class Pretraining(Fit):
    """How the encoder is pre-trained.

    Attributes:
        max_steps: Optimiser steps K, along which the noise levels grow in number.
        batch_size: Images of a batch, over all processes; the others of a batch are the negatives.
        lr: Peak learning rate; warmed up, then a half cosine to 0.
        weight_decay: Of AdamW.
        warmup: Steps of the warm-up.
        clip: Largest norm of the gradients.
        temperature: τ of the contrast.
        parts: both, or one of the two terms of the loss alone.
        target: Which network gives the consistency part's target: online, or the average that the contrastive part
            has.
        scales: Noise levels at the start, s0.
        most_scales: Noise levels at the end, s1.
        decay: Of the target network at the start, μ0.
        last_decay: Of the target network at the end, μ1.
        sharpness: A of the curve between them.
        kept: Decay of the average that comes out.
        crop: Smallest share of an image's area that a view shows.
        jitter: Largest relative change of a view's brightness and contrast.
        solarise: Share of second views whose bright half is inverted.
        flip: Whether views and images are mirrored at random.
    """

    batch_size: Annotated[int, at_least(2)] = 256
    lr: Annotated[float, above(0)] = 1e-3
    weight_decay: Annotated[float, at_least(0)] = 0.03
    warmup: Annotated[int, at_least(0)] = 50
    clip: Annotated[float, above(0)] = 2.0
    temperature: Annotated[float, above(0)] = 0.2
    parts: Literal["both", "contrastive", "consistency"] = "both"
    target: Literal["online", "average"] = "online"
    scales: Annotated[int, at_least(2)] = 20
    most_scales: Annotated[int, at_least(2)] = 80
    decay: Annotated[float, at_least(0), below(1)] = 0.99
    last_decay: Annotated[float, at_least(0), below(1)] = 0.9999
    sharpness: Annotated[float, above(0)] = 10.0
    kept: Annotated[float, at_least(0), below(1)] = 0.99
    crop: Annotated[float, above(0), at_most(1)] = 0.5
    jitter: Annotated[float, at_least(0), below(1)] = 0.4
    solarise: Annotated[float, at_least(0), at_most(1)] = 0.0
    flip: bool = False

    def check(self) -> None:
        """Refuse schedules that fall.

        Raises:
            InputError: Naming the options.
        """
        super().check()
        if self.most_scales < self.scales:
            raise InputError(f"most_scales must be at least scales ({self.scales}), got {self.most_scales}")
        if self.last_decay <= self.decay:
            raise InputError(f"last_decay must be above decay ({self.decay}), got {self.last_decay}")


@dataclass(frozen=True)
class Finetuning(Fit):
    """How a classifier is trained on the encoder.

    Attributes:
        task: consistency (at the noise of sigma), finetune (on clean images) or linear (clean, the head alone).
        max_steps: Optimiser steps; the learning rate falls along a half cosine to 0.
        batch_size: Images of a batch, over all processes.
        lr: Peak learning rate of the head, and of the blocks before layer_decay.
        layer_decay: Factor of the rate from each block to the one below it.
        warmup: Steps of the warm-up.
        draws: Noise draws of an image, m.
        agreement: λ, the weight of the draws' agreement; 20 is the paper's from a sigma of 0.5 on, 10 below.
        confidence: η, the weight of the entropy of the draws' mean.
        form: Of the agreement: default (Kullback-Leibler divergence from the mean), xent (cross-entropy to the mean)
            or mse (squared distance of the probabilities).
        normed: Whether the head reads the normed class token; the paper's ImageNet models do.
        freeze_head: Whether the head keeps its weights, as in the released consistency task.
    """

    task: Literal["consistency", "finetune", "linear"] = "consistency"
    max_steps: Annotated[int, at_least(1)] = 500
    batch_size: Annotated[int, at_least(1)] = 128
    lr: Annotated[float, above(0)] = 1e-3
    layer_decay: Annotated[float, above(0), at_most(1)] = 0.75
    warmup: Annotated[int, at_least(0)] = 25
    draws: Annotated[int, at_least(1)] = 2
    agreement: Annotated[float, at_least(0)] = 20.0
    confidence: Annotated[float, at_least(0)] = 0.5
    form: Literal["default", "xent", "mse"] = "default"
    normed: bool = False
    freeze_head: bool = False


@dataclass(frozen=True)
class Smoothing(Options):
    """How a smoothed classifier is certified.

    Attributes:
        n0: Draws that choose the class.
        n: Fresh draws that bound its probability.
        alpha: Chance that a certificate is wrong.
        seed: Of the noise; draw j of image i depends on (seed, i, j) alone.
        rows: Noisy images in one call of the classifier.
    """

    n0: Annotated[int, at_least(1)] = 100
    n: Annotated[int, at_least(1)] = 100_000
    alpha: Annotated[float, above(0), below(0.5)] = 0.001
    seed: Annotated[int, at_least(0), below(2**62)] = 0
    rows: Annotated[int, at_least(1)] = 1000

    def check(self) -> None:
        """Refuse so few draws that no image could be certified.

        Raises:
            InputError: When even n of n draws of one class bound its probability below one half.
        """
        if self.n0 > self.n:
            raise InputError(f"n0 must be at most n ({self.n}), got {self.n0}")
        if self.alpha ** (1 / self.n) <= 0.5:
            raise InputError(f"n {self.n} certifies nothing at alpha {self.alpha}; use more draws")
