"""The options of FIND; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.kits.training.options import Fit

RatioReference = Literal["behaviour", "initial"]
Penalty = Literal["squared", "kl"]
Surrogate = Literal["hard", "ppo"]
Advantage = Literal["calibrated", "raw", "ranks"]


@dataclass(frozen=True)
class Objective(Options):
    """The distribution of the noise, and its loss.

    Attributes:
        ratio_reference: Against which distribution ratios are taken: behaviour, the one that drew, or initial, as in
            the authors' code. Against the initial one learning stops where the ratio leaves the clip.
        surrogate: hard clamps the ratio on both sides, as published; ppo keeps the gradient that leads back.
        clip: Ratios count within 1 - clip and 1 + clip.
        reward_weight: w_r, of the reward term.
        penalty_weight: w_k, of the distance from standard normal noise.
        penalty: That distance: squared, as published, or the true kl.
        advantage: calibrated subtracts what a small network expects of the distribution, raw takes the reward as it is,
            ranks takes the order within an iteration.
        calibrator_rate: Learning rate of the small network.
        positive: Whether rewards below 0 count as 0.
        replay: Earlier iterations whose rollouts are used again; needs ratio_reference behaviour.
        antithetic: Whether noise is drawn in pairs, z and 2 mu - z; needs an even batch.
        cells: Side of the grid of cells in which mean and sigma are shared; none gives each element its own. Fewer
            numbers are learned with fewer images.
    """

    ratio_reference: RatioReference = "behaviour"
    surrogate: Surrogate = "hard"
    clip: Annotated[float, above(0), below(1)] = 0.2
    reward_weight: Annotated[float, above(0)] = 10.0
    penalty_weight: Annotated[float, at_least(0)] = 0.01
    penalty: Penalty = "squared"
    advantage: Advantage = "calibrated"
    calibrator_rate: Annotated[float, above(0)] = 1e-4
    positive: bool = False
    replay: Annotated[int, at_least(0)] = 0
    antithetic: bool = False
    cells: Annotated[int | None, at_least(1)] = None

    def check(self) -> None:
        """Refuse old rollouts against the initial distribution, which did not draw them.

        Raises:
            InputError: Naming the options.
        """
        if self.replay and self.ratio_reference != "behaviour":
            raise InputError(
                "replay needs ratio_reference behaviour: old noise was not drawn by the initial distribution"
            )


@dataclass(frozen=True)
class Fitting(Fit):
    """Length, step size and bookkeeping of the fit.

    Attributes:
        max_steps: Iterations.
        batch_size: Images an iteration.
        learning_rate: AdamW's; each coordinate moves by about this much a step. Published is 1e-3, for 16,384 of them.
        seed: Of all noise and the calibrator's first weights.
        precision: 32-true; the distribution is always kept in 32 bits.
        device: auto (the GPU if there is one), cpu, cuda or mps.
        devices: 1; one process fits one prompt.
        strategy: auto.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every iteration.
        log_every: Iterations between two rows of metrics.csv.
    """

    max_steps: Annotated[int, at_least(1)] = 150
    batch_size: Annotated[int, at_least(1)] = 4
    learning_rate: Annotated[float, above(0)] = 1e-2
    precision: Literal["32-true"] = "32-true"
    devices: Literal[1] = 1
    strategy: Literal["auto"] = "auto"
    log_every: Annotated[int, at_least(1)] = 1


@dataclass(frozen=True)
class Contest(Options):
    """How images from a learned distribution are compared with those from standard normal noise.

    Attributes:
        count: Images of each.
        trial_seed: Of their noise; other than the fit's.
        success: An image with this reward at least counts as a success.
    """

    count: Annotated[int, at_least(2)] = 64
    trial_seed: Annotated[int, at_least(0)] = 1_000_000
    success: float = 1.0


@dataclass(frozen=True)
class Learned(Options):
    """What was learned, and with which pipeline.

    Attributes:
        model: The pipeline that it was learned with.
        noise: The distribution's folder.
    """

    model: str
    noise: Path
