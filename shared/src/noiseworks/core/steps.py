"""One reverse step each: from a noisy sample and its x_0 prediction to a less noisy sample.

Every function is pure and returns a `Step`: the next sample, mean and standard deviation of the Gaussian it
was drawn from, and the x_0 it used. `noise` is standard normal and the caller's; without it the sample is the
mean. Levels are `Level`s (or σ alone in the variance-exploding and flow views), scalar, (B,) or per token.
Samples keep their dtype; means are float32 at least.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, expand
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
Denoise = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """The outcome of one step.

    Attributes:
        sample: The next sample, in the dtype of the one before.
        mean: Mean of its distribution.
        std: Standard deviation, of a shape that broadcasts to the sample; 0 for a deterministic step.
        x0: The clean sample that the step went by.
    """

    sample: Tensor
    mean: Tensor
    std: Tensor
    x0: Tensor


def _draw(x: Tensor, mean: Tensor, std: Tensor, x0: Tensor, noise: Tensor | None) -> Step:
    sample = mean if noise is None else mean + std * noise
    return Step(sample.to(x.dtype), mean, std, x0)


def check_reverse(level: Level, next_level: Level) -> None:
    """Refuse a reverse step that does not lower the noise; levels on an accelerator pass unchecked.

    Raises:
        InputError: When the next level is as noisy as the present one, or noisier.
    """
    if torch.compiler.is_compiling() or level.sigma.device.type != "cpu":
        return
    if not bool((next_level.sigma * level.alpha < level.sigma * next_level.alpha).all()):
        raise InputError(
            "a reverse step must go to a less noisy level; swap them, or use noiseworks.core.inversion"
        )


def ddim_std(level: Level, next_level: Level, eta: float = 1.0) -> Tensor:
    """Return `σ_η = η √((1−ᾱ_s)/(1−ᾱ_t)) √(1−ᾱ_t/ᾱ_s)` (Song et al. 2021, eq. 16)."""
    return (
        eta * next_level.sigma / level.sigma * (1 - (level.alpha / next_level.alpha) ** 2).clamp(min=0).sqrt()
    )


def ddim_step(
    x: Tensor,
    x0: Tensor,
    level: Level,
    next_level: Level,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Step:
    """Step by DDIM (Song et al. 2021, eq. 12): `α_s x_0 + √(σ_s² − σ_η²) ε + σ_η z`.

    Args:
        x: Sample at `level`, (B, ...).
        x0: Predicted clean sample.
        level: Present level t.
        next_level: Less noisy level s; (1, 0) ends the run.
        eta: 0 is deterministic, 1 has the variance of DDPM.
        noise: z.
        epsilon: Predicted noise where it shall not follow from x and x0, as after x0 was clipped.

    Raises:
        InputError: When s is not less noisy than t.
    """
    check_reverse(level, next_level)
    if epsilon is None:
        epsilon = (x - expand(level.alpha, x) * x0) / expand(level.sigma, x)
    std = ddim_std(level, next_level, eta)
    direction = (next_level.sigma**2 - std**2).clamp(min=0).sqrt()
    mean = expand(next_level.alpha, x) * x0 + expand(direction, x) * epsilon
    return _draw(x, mean, expand(std, x), x0, noise)


def ddpm_step(
    x: Tensor,
    x0: Tensor,
    level: Level,
    next_level: Level,
    *,
    variance: str = "small",
    learned: Tensor | None = None,
    noise: Tensor | None = None,
) -> Step:
    """Step by the DDPM posterior (Ho et al. 2020, eq. 6-7) between any two variance-preserving levels.

    Args:
        x: Sample at `level`.
        x0: Predicted clean sample.
        level: Present level t.
        next_level: Less noisy level s.
        variance: `small` β(1−ᾱ_s)/(1−ᾱ_t), `large` β, or `learned`, between the two in log space.
        learned: For `learned`: the network's v in [−1, 1], broadcasting to x; −1 is small, 1 large.
        noise: Standard normal.

    Raises:
        InputError: On an unknown variance, or when s is not less noisy than t.
    """
    check_choice("variance", variance, ("small", "large", "learned"))
    check_reverse(level, next_level)
    ratio = level.alpha / next_level.alpha
    beta = 1 - ratio**2
    scale_x0 = next_level.alpha * beta / level.sigma**2
    scale_x = ratio * next_level.sigma**2 / level.sigma**2
    mean = expand(scale_x0, x) * x0 + expand(scale_x, x) * x
    small = beta * next_level.sigma**2 / level.sigma**2
    if variance == "learned":
        if learned is None:
            raise InputError("variance='learned' needs the network's output in `learned`")
        share = (learned + 1) / 2
        # The small variance of the last step is 0; its logarithm is cut where float32 ends.
        log_small, log_large = expand(small, x).clamp(min=1e-20).log(), expand(beta, x).log()
        std = torch.exp(0.5 * (share * log_large + (1 - share) * log_small))
    else:
        std = expand((small if variance == "small" else beta).sqrt(), x)
    return _draw(x, mean, std, x0, noise)


def euler_step(x: Tensor, x0: Tensor, sigma: Tensor | float, next_sigma: Tensor | float) -> Step:
    """Step by Euler's rule in the variance-exploding view, `x + (x − x_0)/σ (σ_s − σ)` (Karras et al.)."""
    s, s_next = expand(sigma, x), expand(next_sigma, x)
    mean = x + (x - x0) / s * (s_next - s)
    return _draw(x, mean, torch.zeros_like(s), x0, None)


def heun_step(x: Tensor, x0: Tensor, sigma: Tensor, next_sigma: Tensor, denoise: Denoise) -> Step:
    """Step by Heun's rule (Karras et al. 2022, algorithm 1): the mean of both ends' slopes; Euler to σ = 0.

    Args:
        x: Sample at `sigma`, variance-exploding view.
        x0: Predicted clean sample at `sigma`.
        sigma: Present noise, scalar tensor.
        next_sigma: Next noise, scalar tensor.
        denoise: `(x, σ) -> x_0`, called once at `next_sigma`.
    """
    first = euler_step(x, x0, sigma, next_sigma)
    if float(next_sigma) == 0:
        return first
    s, s_next = expand(sigma, x), expand(next_sigma, x)
    slope = (x - x0) / s
    next_slope = (first.mean - denoise(first.sample, next_sigma)) / s_next
    return _draw(x, x + (s_next - s) * 0.5 * (slope + next_slope), first.std, x0, None)


def euler_ancestral_step(
    x: Tensor, x0: Tensor, sigma: Tensor, next_sigma: Tensor, *, eta: float = 1.0, noise: Tensor | None = None
) -> Step:
    """Step by Euler to σ_down and add σ_up of fresh noise, `σ_up = min(σ_s, η √(σ_s²(σ²−σ_s²)/σ²))`."""
    up = torch.minimum(
        next_sigma, eta * (next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2).clamp(min=0).sqrt()
    )
    down = (next_sigma**2 - up**2).clamp(min=0).sqrt()
    return _draw(x, euler_step(x, x0, sigma, down).mean, expand(up, x), x0, noise)


def churn(x: Tensor, sigma: Tensor, gamma: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Raise the noise from σ to `σ̂ = σ (1 + γ)` before a step (Karras et al. 2022, algorithm 2).

    Returns:
        The noisier sample and σ̂.
    """
    check_number("gamma", gamma, low=0)
    raised = sigma * (1 + gamma)
    return (x + expand((raised**2 - sigma**2).sqrt(), x) * noise).to(x.dtype), raised


def flow_euler_step(x: Tensor, velocity: Tensor, t: Tensor | float, next_t: Tensor | float) -> Step:
    """Step `x + (t_s − t) u` along a flow with velocity `u = ε − x_0`, t = 0 clean."""
    t, next_t = expand(t, x), expand(next_t, x)
    return _draw(x, x + (next_t - t) * velocity, torch.zeros_like(t), x - t * velocity, None)


def flow_heun_step(x: Tensor, velocity: Tensor, t: Tensor, next_t: Tensor, predict: Denoise) -> Step:
    """Step a flow by Heun's rule; `predict(x, t) -> u` is called once at `next_t`."""
    first = flow_euler_step(x, velocity, t, next_t)
    mean_velocity = 0.5 * (velocity + predict(first.sample, next_t))
    return first._replace(**flow_euler_step(x, mean_velocity, t, next_t)._asdict() | {"x0": first.x0})


def flow_rk4_step(x: Tensor, velocity: Tensor, t: Tensor, next_t: Tensor, predict: Denoise) -> Step:
    """Step a flow by the classical Runge-Kutta rule; `predict(x, t) -> u` is called three times."""
    middle = 0.5 * (t + next_t)
    k2 = predict(flow_euler_step(x, velocity, t, middle).sample, middle)
    k3 = predict(flow_euler_step(x, k2, t, middle).sample, middle)
    k4 = predict(flow_euler_step(x, k3, t, next_t).sample, next_t)
    step = flow_euler_step(x, (velocity + 2 * k2 + 2 * k3 + k4) / 6, t, next_t)
    return step._replace(x0=flow_euler_step(x, velocity, t, next_t).x0)


def flow_sde_step(
    x: Tensor,
    velocity: Tensor,
    t: Tensor | float,
    next_t: Tensor | float,
    *,
    noise_level: float = 0.7,
    noise: Tensor | None = None,
    max_t: float = 0.98,
) -> Step:
    """Step the stochastic twin of a flow, which keeps its marginals (Liu et al. 2025, Flow-GRPO, eq. 9).

    `σ(t) = a √(t/(1−t))`, drift `u + σ²/(2t) (x + (1−t) u)`, standard deviation `σ √(t − t_s)`.

    Args:
        x: Sample at t, (B, ...).
        velocity: u = ε − x_0.
        t: Present time, 0 clean.
        next_t: Next, smaller time.
        noise_level: a; 0 is the deterministic flow.
        noise: Standard normal.
        max_t: σ is taken at no later time than this, because it grows without bound towards t = 1.
    """
    check_number("noise_level", noise_level, low=0)
    t, next_t = expand(t, x), expand(next_t, x)
    capped = t.clamp(max=max_t)
    sigma = noise_level * (capped / (1 - capped)).sqrt()
    drift = velocity + sigma**2 / (2 * t) * (x + (1 - t) * velocity)
    mean = x + (next_t - t) * drift
    return _draw(x, mean, sigma * (t - next_t).sqrt(), x - t * velocity, noise)


def log_prob(
    sample: Tensor, mean: Tensor, std: Tensor, *, reduce: str = "mean", min_std: float | None = None
) -> Tensor:
    """Return the log-density of a step's sample, (B,).

    Args:
        sample: The next sample, (B, ...).
        mean: Its mean.
        std: Its standard deviation, broadcasting to the sample.
        reduce: Over all but the first axis: `sum` is the log-density; `mean` divides it by the number of
            elements, as diffusion RL commonly does, which takes probability ratios to that root.
        min_std: Floor of std; without it a deterministic step is refused.

    Raises:
        InputError: When std is 0 and there is no floor, or on an unknown reduction.
    """
    check_choice("reduce", reduce, ("mean", "sum"))
    if min_std is not None:
        std = std.clamp(min=min_std)
    elif not torch.compiler.is_compiling() and bool((std == 0).any()):
        raise InputError(
            "a step with std 0 has no density; use eta > 0, leave out the last step, or give min_std"
        )
    density = -0.5 * ((sample - mean) / std) ** 2 - std.log() - LOG_SQRT_2PI
    axes = tuple(range(1, density.ndim))
    return density.mean(axes) if reduce == "mean" else density.sum(axes)
