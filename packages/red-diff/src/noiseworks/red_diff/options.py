"""The options of red-diff; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Hardware, Options, above, at_least, at_most, below

Method = Literal["red-diff", "dps", "pigdm", "ddrm", "start"]
METHODS: tuple[Method, ...] = ("start", "ddrm", "pigdm", "dps", "red-diff")


@dataclass(frozen=True)
class RedDiff(Options):
    """How the variational sampler runs.

    Attributes:
        num_steps: Optimiser steps, of which each visits one noise level; must divide the timesteps.
        strength: lambda, the weight of the prior against the data.
        learning_rate: Of the optimiser.
        weight: Weight of a noise level: linear (in sigma / alpha), sqrt, square, log, trunc_linear, power2over3 or
            const.
        order: Order of the noise levels: descending, ascending, random, random_permutation or fixed (plain RED).
        fixed_timestep: The level of the order `fixed`.
        sigma_x0: Spread of the images that are noised around mu.
        data_weight: v, the weight of the data term; 0 is score distillation from the start alone.
        reduction: mean (over measurements and over pixels, as released) or sum (as in the paper); lambda of sum is
            lambda of mean times measurements / pixels.
        optimizer: adam, or sgd with momentum 0, whose steps show the objective's own scale.
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
    optimizer: Literal["adam", "sgd"] = "adam"
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
class Plan(Options):
    """A method with its settings.

    Attributes:
        method: red-diff, dps, pigdm, ddrm, or start (what the operator alone gives).
        settings: Of RED-diff; every method takes its number of steps.
        baselines: Of the others.
        sigma_y: Deviation of the measurement's noise, which PiGDM and DDRM use.
        restarts: Runs with other noise, of which the one that explains a measurement best is kept; phase retrieval
            needs it, since an image and its reflection have the same magnitudes.
    """

    method: Method = "red-diff"
    settings: RedDiff = RedDiff()
    baselines: Baselines = Baselines()
    sigma_y: Annotated[float, at_least(0)] = 0.0
    restarts: Annotated[int, at_least(1)] = 1

    def eta(self, default: float) -> float:
        """Return the share of fresh noise, or a method's default."""
        return default if self.baselines.eta is None else self.baselines.eta


@dataclass(frozen=True)
class Choice(Options):
    """By which method an image is restored.

    Attributes:
        simulate: Degrade the image first, and report how near the restored one comes to it.
        method: red-diff, dps, pigdm, ddrm, or start (what the operator alone gives).
        restarts: Runs with other noise, of which the one that explains the measurements best is kept.
    """

    simulate: bool = False
    method: Method = "red-diff"
    restarts: Annotated[int, at_least(1)] = 1


@dataclass(frozen=True, kw_only=True)
class Problem(Hardware):
    """Which image, and which model restores it.

    Attributes:
        model: A diffusers pipeline of pixels or latents: a directory, a hub id or testbed:<name>.
        image: The image, or for compare also a folder of them.
        prompt: What the image shows, where the model takes a text; the number of a class for DiT.
        seed: Of the noise; image i has seed + i.
        device: auto (the GPU if there is one), cpu, cuda, cuda:N or mps.
        dtype: Type of the weights: auto (float32), float32, bfloat16 or float16.
    """

    model: str
    image: Path
    prompt: str = ""
    seed: Annotated[int, at_least(0), below(2**32)] = 0


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
