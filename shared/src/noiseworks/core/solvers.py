"""DPM-Solver++ (Lu et al. 2022): exponential integrators of the x_0 prediction, with explicit state.

With half log-SNR `λ = log α/σ` and `h = λ_s − λ_t`, one step is `x_s = (σ_s/σ_t) x − α_s (e^{−h} − 1) D`. The
first-order D is x_0, the second-order ones extrapolate it. What a multistep solver remembers is a `History`
that goes in and comes out, so steps can be run again, stored, differentiated or batched as the caller likes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from noiseworks.core.schedules import Level, expand
from noiseworks.core.steps import Step, check_reverse
from torch import Tensor


class History(NamedTuple):
    """What 2M keeps of the step before: its x_0 prediction and its level."""

    x0: Tensor
    level: Level


def dpmpp_1_step(
    x: Tensor, x0: Tensor, level: Level, next_level: Level, *, noise: Tensor | None = None, sde: bool = False
) -> Step:
    """Step by first-order DPM-Solver++, which is DDIM; with `sde`, the first-order solver of the SDE.

    Args:
        x: Sample at `level`, (B, ...).
        x0: Predicted clean sample.
        level: Present level t.
        next_level: Less noisy level s; σ_s = 0 gives x_0.
        noise: Standard normal, used with `sde`.
        sde: `x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) x_0 + σ_s √(1 − e^{−2h}) z`.

    Raises:
        InputError: When s is not less noisy than t.
    """
    return _integrate(x, x0, x0, level, next_level, noise, sde)


def dpmpp_2m_step(
    x: Tensor,
    x0: Tensor,
    level: Level,
    next_level: Level,
    history: History | None,
    *,
    noise: Tensor | None = None,
    sde: bool = False,
) -> tuple[Step, History]:
    """Step by the two-step solver 2M: `D = x_0 + (x_0 − x_0^{prev}) / (2r)`, `r = h_prev/h`.

    The first step (no history) and the step to σ = 0 are of first order.

    Args:
        x: Sample at `level`.
        x0: Predicted clean sample.
        level: Present level t.
        next_level: Less noisy level s.
        history: What the step before returned, None at first.
        noise: Standard normal, used with `sde`.
        sde: Integrate the reverse SDE and not the probability-flow ODE.

    Returns:
        The step and the history for the next.

    Raises:
        InputError: When s is not less noisy than t.
    """
    direction = x0
    if history is not None:
        h = next_level.log_snr - level.log_snr
        h_before = level.log_snr - history.level.log_snr
        # h is infinite on the step to σ = 0, h_before after a start at α = 0; both are first-order steps.
        weight = torch.where(torch.isfinite(h) & torch.isfinite(h_before), h / (2 * h_before), 0.0)
        direction = x0 + expand(weight, x) * (x0 - history.x0)
    return _integrate(x, direction, x0, level, next_level, noise, sde), History(x0, level)


def dpmpp_2s_step(
    x: Tensor,
    x0: Tensor,
    level: Level,
    middle: Level,
    next_level: Level,
    denoise: Callable[[Tensor, Level], Tensor],
) -> Step:
    """Step by the single-step solver 2S: first order to the middle, `D = x_0 + (x_0^{mid} − x_0)/(2r)`.

    Args:
        x: Sample at `level`.
        x0: Predicted clean sample at `level`.
        level: Present level t.
        middle: A level in between; `r = (λ_mid − λ_t)/h`.
        next_level: Less noisy level s with σ_s > 0.
        denoise: `(x, level) -> x_0`, called once at `middle`.

    Raises:
        InputError: When the levels do not fall.
    """
    between = _integrate(x, x0, x0, level, middle, None, False).sample
    r = (middle.log_snr - level.log_snr) / (next_level.log_snr - level.log_snr)
    direction = x0 + expand(1 / (2 * r), x) * (denoise(between, middle) - x0)
    return _integrate(x, direction, x0, level, next_level, None, False)


def _integrate(
    x: Tensor, direction: Tensor, x0: Tensor, level: Level, next_level: Level, noise: Tensor | None, sde: bool
) -> Step:
    check_reverse(level, next_level)
    # e^{−h}, written so that it is exactly 0 on the step to σ = 0.
    decay = next_level.sigma * level.alpha / (level.sigma * next_level.alpha)
    scale = next_level.sigma / level.sigma
    if sde:
        scale, decay = scale * decay, decay**2
    mean = expand(scale, x) * x + expand(next_level.alpha * (1 - decay), x) * direction
    std = next_level.sigma * (1 - decay).clamp(min=0).sqrt() if sde else torch.zeros_like(decay)
    std = expand(std, x)
    sample = mean if noise is None or not sde else mean + std * noise
    return Step(sample.to(x.dtype), mean, std, x0)
