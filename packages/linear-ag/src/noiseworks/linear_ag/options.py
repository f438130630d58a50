"""The options of Adaptive Guidance and LinearAG; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least
from noiseworks.kits.diffusers_hosts import options

Space = Literal["auto", "x_minus_eps", "x0", "eps"]


@dataclass(frozen=True)
class Sampling(options.Sampling):
    """How images are drawn, with guidance.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance scale, above 1 (FLUX's true_cfg_scale).
        negative_prompt: Takes the place of the empty prompt.
        batch_size: Samples a run.
        seed: Sample i is drawn with seed + i, whatever the batch size.
    """

    guidance_scale: Annotated[float, above(1)] = 7.5


@dataclass(frozen=True)
class Making(Options):
    """What named policies are made with.

    Attributes:
        threshold: Similarity of the two predictions; above 1 means full guidance throughout.
        space: Vectors that are compared: auto, x_minus_eps, x0 or eps.
        coefs: Folder of LinearAG's coefficients, for policies that need them.
    """

    threshold: Annotated[float, at_least(-1)] = 0.99
    space: Space = "auto"
    coefs: Path | None = None


@dataclass(frozen=True)
class Aim(Options):
    """What a threshold is calibrated for.

    Attributes:
        target_nfe: Mean network evaluations a sample to aim at, for instance 30 of 40.
        max_quality_loss: Instead: largest relative squared distance of the final latents to full guidance.
        space: Vectors that are compared: auto, x_minus_eps, x0 or eps.
    """

    target_nfe: Annotated[float | None, above(0)] = None
    max_quality_loss: Annotated[float | None, at_least(0)] = None
    space: Space = "auto"

    def check_given(self, steps: int, predictions: int = 2) -> None:
        """Refuse anything but one aim, and one that no threshold reaches.

        Args:
            steps: T.
            predictions: Of a guided step; 3 for InstructPix2Pix.

        Raises:
            InputError: When none or both are given, or `target_nfe` is below T + 1 or above that of full guidance.
        """
        if (self.target_nfe is None) == (self.max_quality_loss is None):
            raise InputError("give either target_nfe or max_quality_loss")
        if self.target_nfe is not None:
            check_number("target_nfe", self.target_nfe, low=steps + 1, high=predictions * steps)


@dataclass(frozen=True)
class Regression(Options):
    """How LinearAG's coefficients are fitted.

    Attributes:
        ridge: Added to the diagonal of the normal equations, scaled to unit diagonal.
        intercept: Whether to fit a constant a step.
    """

    ridge: Annotated[float, at_least(0)] = 1e-7
    intercept: bool = False


@dataclass(frozen=True)
class SearchSettings(Options):
    """How a policy is searched for; all but the first four concern the gradient search.

    Attributes:
        method: relaxed (the paper's gradient search), truncation (guide the first steps, as many as the budget
            allows) or local (improve that one by moving guided steps).
        budget: Network evaluations a sample.
        max_evaluations: Policies that the local search may try.
        reuse: Beyond the paper: whether steps after a guided one go on with its difference instead of without
            guidance; not for the relaxed search.
        scales: Guidance scales to choose among, by default the one that is drawn with.
        updates: Gradient steps.
        learning_rate: Of Adam.
        temperature: tau of the softmax.
        gumbel: Whether to add Gumbel noise to the scores (Gumbel-softmax).
        cost_weight: lambda_c, on evaluations above the budget.
        entropy_weight: lambda_e, on the entropy of the mixture.
        compare: What is compared with full guidance: latent (final latents) or image (decoded images, so that latent
            directions that show nowhere do not count; it costs the decoder's memory).
        start_seed: Of the scores' start and the Gumbel noise.
    """

    method: Literal["relaxed", "truncation", "local"] = "relaxed"
    budget: Annotated[float, above(0)] = 30.0
    max_evaluations: Annotated[int, at_least(1)] = 100
    reuse: bool = False
    scales: tuple[float, ...] = ()
    updates: Annotated[int, at_least(1)] = 100
    learning_rate: Annotated[float, above(0)] = 0.05
    temperature: Annotated[float, above(0)] = 1.0
    gumbel: bool = False
    cost_weight: Annotated[float, at_least(0)] = 0.1
    entropy_weight: float = 0.0
    compare: Literal["latent", "image"] = "latent"
    start_seed: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse scales without guidance, and reuse where it has no meaning.

        Raises:
            InputError: When a scale is 1 or below, or the relaxed search is to reuse.
        """
        if self.reuse and self.method == "relaxed":
            raise InputError("the relaxed search does not reuse differences: give method truncation or local")
        for scale in self.scales:
            check_number("scales", scale, low=1.0, low_open=True)


@dataclass(frozen=True)
class Contest(Options):
    """What is compared with full guidance.

    Attributes:
        policies: Names as in generate --policy, commas between; and cfg:N, full guidance in N steps.
        target_nfe: Calibrate Adaptive Guidance to so many evaluations; otherwise --threshold counts.
        calibration_prompts: Text file for calibrating and fitting, by default the same prompts.
    """

    policies: str = "ag,cfg:15,first:0.5,cond"
    target_nfe: Annotated[float | None, above(0)] = None
    calibration_prompts: str | None = None

    @property
    def names(self) -> list[str]:
        """The policies."""
        return [name.strip() for name in self.policies.split(",") if name.strip()]
