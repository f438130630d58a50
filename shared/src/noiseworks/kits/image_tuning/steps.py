"""Reverse steps as Gaussians, and log-probabilities of what they drew.

Every step is a function `(prediction, x, level, next level) -> Step` whose `mean` and `std` are those of the next
latents. `scored` draws from it, or takes what was drawn before, and adds the log-probability, averaged over the
latents' elements: the clip ranges, betas and KL weights of these methods are calibrated for the average. A sum would
multiply every log-ratio by C h w, 16,384 for Stable Diffusion.
"""

from typing import NamedTuple

import torch
from noiseworks.core.params import to_epsilon, to_x0
from noiseworks.core.schedules import Level, expand
from noiseworks.core.steps import Step, ddim_step, euler_ancestral_step, log_prob
from torch import Tensor


class ScoredStep(NamedTuple):
    """A step that was drawn, and how likely it was.

    Attributes:
        sample: The next latents [B, ...], in the dtype of the ones before.
        log_prob: Mean over the elements of their log-density, float32 at least [B]; 0 for a deterministic step.
        mean: Mean of the next latents.
        std: Their standard deviation, broadcasting to them.
    """

    sample: Tensor
    log_prob: Tensor
    mean: Tensor
    std: Tensor


def ddim_transition(
    prediction: Tensor, x: Tensor, level: Level, next_level: Level, prediction_type: str, eta: float
) -> Step:
    """Return DDIM's step: mean `sqrt(a_s) x_0 + sqrt(1 - a_s - s^2) e`, std s (Song et al. 2021, eq. 12 and 16).

    Args:
        prediction: The network's (guided) prediction [B, ...].
        x: Latents at `level`.
        level: Present level, one a sample.
        next_level: Next level, one a sample.
        prediction_type: What the network predicts.
        eta: Share of DDPM's noise.
    """
    x0, epsilon = (convert(prediction, x, level, prediction_type) for convert in (to_x0, to_epsilon))
    return ddim_step(x, x0, level, next_level, eta=eta, epsilon=epsilon)


def renoising_transition(
    prediction: Tensor, x: Tensor, level: Level, next_level: Level, prediction_type: str
) -> Step:
    """Return the step of few-step distilled models, which noise x_0 anew: mean `sqrt(a_s) x_0`, std `sqrt(1 - a_s)`.

    The arguments are those of `ddim_transition`.
    """
    x0 = to_x0(prediction, x, level, prediction_type)
    mean = expand(next_level.alpha, x) * x0
    return Step(mean.to(x.dtype), mean, expand(next_level.sigma, x), x0)


def ancestral_transition(
    prediction: Tensor, x: Tensor, level: Level, next_level: Level, prediction_type: str
) -> Step:
    """Return Euler's ancestral step of latents in the variance-exploding view, `x_0 + sigma e`.

    The arguments are those of `ddim_transition`; the network saw `x / sqrt(sigma^2 + 1)`.
    """
    x0 = to_x0(prediction, x * expand(level.alpha, x), level, prediction_type)
    return euler_ancestral_step(x, x0, level.sigma_ve, next_level.sigma_ve)


def flow_transition(
    velocity: Tensor, x: Tensor, sigma: Tensor, next_sigma: Tensor, noise_level: float, largest: float
) -> Step:
    """Return the stochastic step of a rectified flow, `k = a sqrt(sigma / (1 - sigma))` (Flow-GRPO, eq. 9).

    Mean `x (1 + k^2 dt / (2 sigma)) + v (1 + k^2 (1 - sigma) / (2 sigma)) dt`, std `k sqrt(-dt)`.

    Args:
        velocity: The network's prediction v = e - x_0 [B, ...].
        x: Latents at `sigma`.
        sigma: Present noise, one a sample, 1 for pure noise.
        next_sigma: Next noise.
        noise_level: a.
        largest: The second sigma of the grid, which bounds k's denominator at the first one (as in the authors' code).
    """
    k = noise_level * (sigma / (1 - torch.where(sigma >= 1, largest, sigma))).sqrt()
    dt = next_sigma - sigma
    half = k**2 / (2 * sigma)
    mean = expand(1 + half * dt, x) * x + expand((1 + half * (1 - sigma)) * dt, x) * velocity
    return Step(mean.to(x.dtype), mean, expand(k * (-dt).sqrt(), x), x - expand(sigma, x) * velocity)


def scored(
    step: Step, dtype: torch.dtype, *, sample: Tensor | None = None, noise: Tensor | None = None
) -> ScoredStep:
    """Return a step with what it drew and the log-probability of that.

    What is drawn is rounded to the latents' dtype before it is scored. Otherwise a stored chain, scored again with the
    same weights, has log-ratios other than 0: 1.4e-4 at the last of Stable Diffusion's steps in float16.

    Args:
        step: From one of the transitions.
        dtype: Of the latents.
        sample: Next latents that were drawn before; they get no gradient.
        noise: Standard normal noise to draw with; without both, the step is deterministic and its score 0.
    """
    deterministic = sample is None and noise is None
    if sample is None:
        drawn = step.mean if noise is None else step.mean + step.std * noise.to(step.mean.dtype)
        sample = drawn.to(dtype)
    sample = sample.detach()
    if deterministic:
        return ScoredStep(sample, step.mean.new_zeros(len(sample)), step.mean, step.std)
    return ScoredStep(sample, log_prob(sample.to(step.mean.dtype), step.mean, step.std), step.mean, step.std)
