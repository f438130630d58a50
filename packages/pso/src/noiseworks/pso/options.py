"""The options of PSO with the published values; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.options import Options, Wholes, above, at_least, below
from noiseworks.kits.image_tuning.options import LoraTuning, PairLoss, Rollout, Tuning

FAMILIES = ("sd", "sdxl")
Kind = Literal["own", "renoising", "ancestral"]
Trained = Literal["sampler", "script", "all"]
Rule = Literal["dominance", "random"]


@dataclass(frozen=True)
class Sampler(Options):
    """The few-step sampler that is tuned; distilled models are called without guidance, so there is none here.

    Attributes:
        num_inference_steps: Steps n of the sampler; all but the last draw, and are trained online.
        kind: own takes the pipeline's scheduler, which is LCM's or Euler ancestral; renoising is LCM's with the
            timesteps of DMD2 (999, 749, 499, 249), ancestral is Euler's as SDXL-Turbo uses it.
        rollout_batch: Samples of one call of the denoiser; changes no number but in the last bits.
        size: Height and width of the images in pixels; the pipeline's own by default.
    """

    num_inference_steps: Annotated[int, at_least(2)] = 4
    kind: Kind = "own"
    rollout_batch: Annotated[int, at_least(1)] = 16
    size: Annotated[int | None, at_least(8)] = None

    def rollout(self) -> Rollout:
        """Return how the kit's policy draws with it."""
        return Rollout(
            self.num_inference_steps, guidance_scale=1.0, rollout_batch=self.rollout_batch, size=self.size
        )


@dataclass(frozen=True)
class Preference(Options):
    """What the two images of a prompt teach online.

    Attributes:
        beta: Strength of a preference.
        clamp_eps: A step's probability ratio counts within 1 - eps and 1 + eps; none switches it off.
        rule: With several numbers an image, dominance prefers what is at least as good in all; random draws one of them
            for each pair and compares that.
        shared_start: Whether both start from the same noise; the released code draws them independently.
    """

    beta: Annotated[float, above(0)] = 50.0
    clamp_eps: Annotated[float | None, above(0), below(1)] = 0.1
    rule: Rule = "dominance"
    shared_start: bool = False


@dataclass(frozen=True)
class Pairing(PairLoss):
    """What pairs of finished images teach, by their denoising errors.

    Attributes:
        kappa: Strength beta of a pair; errors are means over elements.
        link: Loss of a margin: sigmoid, hinge or ipo.
        gamma: Weight of the reference image's error in the margin; 1 is Diffusion-DPO's.
        anchor: Weight lambda of the reference image's own error, which holds the model where it is.
        timesteps: Which are trained: the sampler's own, those that the released script's indices hit (750, 500, 250,
            0), or all.
        refresh: Optimiser steps between two drawings of reference images that the model makes itself; 0 keeps the
            untuned model's.
    """

    gamma: Annotated[float, at_least(0)] = 1.0
    anchor: Annotated[float, at_least(0)] = 0.0
    timesteps: Trained = "sampler"
    refresh: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class Personal(Options):
    """What pictures of a subject teach against images of its class.

    Attributes:
        strength: beta, slope of the hinge.
        down_weight: gamma, weight of the class image's error in the margin.
        hold: lambda, weight of the class image's own error. At strength times down_weight it cancels the class image:
            the released values 5, 0.1 and 0.5 do.
        negatives: Images of the class that the untuned model draws once.
        timesteps: Which are trained: the sampler's own, those that the released script's indices hit (750, 500, 250,
            0), or all.
    """

    strength: Annotated[float, above(0)] = 5.0
    down_weight: Annotated[float, at_least(0)] = 0.1
    hold: Annotated[float, at_least(0)] = 0.1
    negatives: Annotated[int, at_least(1)] = 20
    timesteps: Trained = "sampler"

    @property
    def degenerate(self) -> bool:
        """Whether class images have no effect while the hinge is active."""
        return abs(self.strength * self.down_weight - self.hold) < 1e-6


@dataclass(frozen=True)
class Steps(Options):
    """At how many steps a tuned pipeline is tried.

    Attributes:
        kind: own takes the pipeline's scheduler, renoising LCM's with the timesteps of DMD2, ancestral Euler's.
        steps: Numbers of steps, such as 2,4,8; each is tried.
    """

    kind: Kind = "own"
    steps: Annotated[Wholes, at_least(2)] = (4,)

    def samplers(self) -> list[Sampler]:
        """Return the samplers, in the order given."""
        return [Sampler(n, self.kind) for n in self.steps]


RELEASED = Personal(hold=0.5, timesteps="script")
ONLINE = Tuning(
    max_steps=100,
    batch_size=16,
    learning_rate=1e-5,
    weight_decay=1e-6,
    lora_rank=16,
    minibatch=2,
    accumulate=2,
)
OFFLINE = LoraTuning(max_steps=600, learning_rate=1e-5, lora_rank=16)
PERSONAL = LoraTuning(max_steps=600, batch_size=4, learning_rate=2e-4, lora_rank=16)
