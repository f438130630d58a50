"""The options of red-diff; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below

Method = Literal["red-diff", "dps", "pigdm", "ddrm", "start"]
METHODS: tuple[Method, ...] = ("start", "ddrm", "pigdm", "dps", "red-diff")


@dataclass(frozen=True)
class RedDiff(Options):
    """How the variational sampler runs.

    Attributes:
        num_steps: Optimiser steps, of which each visits one noise level; must divide the timesteps.
        strength: lambda, the weight of the prior against the data.
        learning_rate: Of Adam.
        weight: Weight of a noise level: linear (in sigma / alpha), sqrt, square, log, trunc_linear, power2over3 or
            const.
        order: Order of the noise levels: descending, ascending, random, random_permutation or fixed (plain RED).
        fixed_timestep: The level of the order `fixed`.
        sigma_x0: Spread of the images that are noised around mu.
        data_weight: v, the weight of the data term; 0 is score distillation from the start alone.
        reduction: mean (over measurements and over pixels, as released) or sum (as in the paper); lambda of sum is
            lambda of mean times measurements / pixels.
        beta2: Adam's decay of squared gradients.
        clamp: Keep mu in [-1, 1].
    """

    num_steps: Annotated[int, at_least(1)] = 100
    strength: Annotated[float, at_least(0)] = 0.25
    learning_rate: Annotated[float, above(0)] = 0.25
    weight: Literal["linear", "sqrt", "square", "log", "trunc_linear", "power2over3", "const"] = "linear"
    order: Literal["descending", "ascending", "random", "random_permutation", "fixed"] = "descending"
    fixed_timestep: Annotated[int, at_least(0)] = 500
    sigma_x0: Annotated[float, at_least(0)] = 0.0
    data_weight: Annotated[float, at_least(0)] = 1.0
    reduction: Literal["mean", "sum"] = "mean"
    beta2: Annotated[float, at_least(0), below(1)] = 0.99
    clamp: bool = False


@dataclass(frozen=True)
class Baselines(Options):
    """Knobs of the samplers that are compared with.

    Attributes:
        step_size: zeta of DPS, on the gradient of the squared residual over the residual.
        eta: Share of fresh noise, 0 (DDIM) to 1; by default 0 for DPS, 1 for PiGDM, 0.85 for DDRM.
        start_step: Timestep below which PiGDM begins.
    """

    step_size: Annotated[float, at_least(0)] = 0.5
    eta: Annotated[float | None, at_least(0), at_most(1)] = None
    start_step: Annotated[int, at_least(1)] = 1000


@dataclass(frozen=True)
class Degradation(Options):
    """What was done to the image.

    Attributes:
        task: inpaint, box, average (super-resolution from block means), bicubic, deblur (Gaussian), uniform, motion,
            color, denoise, fourier, sensing, hdr or phase.
        mask: For inpaint: an image whose white pixels are known.
        keep: Share that is known, where no mask is given: of pixels, frequencies or measurements.
        factor: Of super-resolution.
        taps: Of blurs; odd.
        blur_sigma: Of the Gaussian blur, in pixels.
        sigma_y: Deviation of the measurement's noise, for images in [-1, 1]; twice that of images in [0, 1].
        draw: Seed of random masks and measurements.
    """

    task: Literal[
        "inpaint",
        "box",
        "average",
        "bicubic",
        "deblur",
        "uniform",
        "motion",
        "color",
        "denoise",
        "fourier",
        "sensing",
        "hdr",
        "phase",
    ] = "inpaint"
    mask: Path | None = None
    keep: Annotated[float, above(0), at_most(1)] = 0.5
    factor: Annotated[int, at_least(2)] = 2
    taps: Annotated[int, at_least(3)] = 5
    blur_sigma: Annotated[float, above(0)] = 1.5
    sigma_y: Annotated[float, at_least(0)] = 0.0
    draw: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse an even number of taps, a missing mask file and a mask that is not read.

        Raises:
            InputError: Naming it.
        """
        if self.taps % 2 == 0:
            raise InputError(f"taps must be odd, got {self.taps}")
        if self.mask is not None and self.task != "inpaint":
            raise InputError(f"--mask is for the task inpaint, not for {self.task}")
        if self.mask is not None and not self.mask.is_file():
            raise InputError(f"no mask at {self.mask}")
