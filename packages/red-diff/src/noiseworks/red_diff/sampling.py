"""The samplers that RED-diff is compared with: DPS, PiGDM and DDRM, in one loop of DDIM steps.

DPS (Chung et al. 2023) and PiGDM (Song et al. 2023) differentiate through the network; DDRM (Kawar et al. 2022) works
on the operator's singular values and does not.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, add_noise, expand
from noiseworks.core.steps import ddim_step
from noiseworks.red_diff.operators import Operator, SpectralOperator
from noiseworks.red_diff.options import Plan
from noiseworks.red_diff.priors import START, XT, Prior, noise_for
from noiseworks.red_diff.weights import timestep_grid
from torch import Tensor

MEASURED_SHARE = 1.0  # eta_b of DDRM


class Spectrum(NamedTuple):
    """What a measurement says of each coefficient.

    Attributes:
        target: y_i / s_i, `[B, N]`.
        spread: sigma_y / s_i, its deviation, `[N]`.
        known: Where s_i > 0, `[N]`.
    """

    target: Tensor
    spread: Tensor
    known: Tensor


def denoised(prior: Prior, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """Return x_0 and the noise that the model predicts; gradients pass."""
    level, epsilon = prior.level(t), prior.epsilon(x, t)
    return (x - expand(level.sigma, x) * epsilon) / expand(level.alpha, x), epsilon


def dps_steps(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    plan: Plan = Plan(),
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield x_s after each step of diffusion posterior sampling: `x_s - zeta grad |y - f(x_0)|^2 / |y - f(x_0)|`.

    Since the derivative is of the square, zeta is half the step of the formula with the gradient of the norm.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements.
        plan: Steps, zeta and share of fresh noise (0 by default).
        seeds: One a sample.
    """

    def correction(x: Tensor, x0: Tensor, level: Level, after: Level) -> Tensor:
        squared = (y - operator.forward(x0)).flatten(1).square().sum(1)
        (gradient,) = torch.autograd.grad(squared.sum(), x)
        norm = squared.detach().sqrt().clamp(min=torch.finfo(x.dtype).eps)
        return -plan.baselines.step_size * gradient / expand(norm, x)

    return _guided_steps(prior, operator, y, plan, plan.eta(0.0), seeds, correction, 1000)


def pigdm_steps(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    plan: Plan = Plan(),
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield the states of pseudo-inverse guidance, `x_s + alpha_s alpha_t J^T A^T (A A^T + q I)^-1 (y - A x_0)`.

    J is the Jacobian of x_0 and q = sigma_y^2 / r^2 with r^2 = sigma_t^2 / (sigma_t^2 + alpha_t^2); without noise the
    inverse is the pseudo-inverse. Non-linear operators take `start` for it, without noise only.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements.
        plan: Steps, deviation of the noise, share of fresh noise (1 by default) and where the run begins.
        seeds: One a sample.

    Raises:
        InputError: When there is noise and the operator has no decomposition.
    """
    spectral, sigma_y = isinstance(operator, SpectralOperator), plan.sigma_y
    if sigma_y and not spectral:
        raise InputError("PiGDM with noise needs an operator with a singular value decomposition")

    def correction(x: Tensor, x0: Tensor, level: Level, after: Level) -> Tensor:
        with torch.no_grad():
            if spectral:
                spread = float(level.sigma**2 / (level.sigma**2 + level.alpha**2))
                missing = operator.regularized(y - operator.forward(x0), sigma_y**2 / spread)
            else:
                missing = operator.start(y) - operator.start(operator.forward(x0))
        (gradient,) = torch.autograd.grad((missing * x0).sum(), x)
        return expand(level.alpha * after.alpha, x) * gradient

    return _guided_steps(
        prior, operator, y, plan, plan.eta(1.0), seeds, correction, plan.baselines.start_step
    )


def _guided_steps(prior, operator, y, plan, eta, seeds, correction, start_step) -> Iterator[Tensor]:
    operator.check(y)
    seeds = range(len(y)) if seeds is None else seeds
    grid = timestep_grid(plan.settings.num_steps, min(start_step, prior.schedule.num_steps))
    first = operator.start(y).detach()
    x = add_noise(first, noise_for(first, seeds, START), prior.level(grid[0]))
    for step, (t, s) in enumerate(pairwise([*grid, -1])):
        level, after = prior.level(t), prior.level(s)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, epsilon = denoised(prior, x, t)
            moved = correction(x, x0, level, after)
        noise = noise_for(x, seeds, XT, step) if eta else None
        taken = ddim_step(
            x.detach(), x0.detach(), level, after, eta=eta, noise=noise, epsilon=epsilon.detach()
        )
        x = taken.sample + moved
        yield x
    check_finite("restored image", x)


@torch.no_grad()
def ddrm_steps(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    plan: Plan = Plan(),
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield x_s after each step of denoising diffusion restoration, in the operator's spectrum.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements.
        plan: Steps, deviation of the noise and share of fresh noise (0.85 by default).
        seeds: One a sample.

    Raises:
        InputError: When the operator has no decomposition.
    """
    if not isinstance(operator, SpectralOperator):
        raise InputError("DDRM needs a linear operator with a singular value decomposition")
    operator.check(y)
    seeds = range(len(y)) if seeds is None else seeds
    singular, sigma_y = operator.scale(y), plan.sigma_y
    known = singular > 0
    inverse = torch.where(known, 1 / singular.clamp(min=1e-12), 0.0)
    target, spread = operator.measured(y) * inverse, sigma_y * inverse  # y_i / s_i and its deviation
    measured = Spectrum(target, spread, known)
    grid = timestep_grid(plan.settings.num_steps, prior.schedule.num_steps)
    top = float(prior.level(grid[0]).sigma_ve)
    first = operator.start(y)
    noise = operator.spectrum(noise_for(first, seeds, START))
    c = target + (top**2 - spread.square()).clamp(min=0).sqrt() * noise
    for step, (t, s) in enumerate(pairwise([*grid, -1])):
        level, sigma = prior.level(t), float(prior.level(s).sigma_ve)
        x = expand(level.alpha, first) * operator.image(c)
        x0, epsilon = (operator.spectrum(part) for part in denoised(prior, x, t))
        noise = operator.spectrum(noise_for(first, seeds, XT, step))
        c = ddrm_update(x0, epsilon, measured, sigma, plan.eta(0.85), noise)
        yield expand(prior.level(s).alpha, first) * operator.image(c)
    check_finite("restored image", c)


def ddrm_update(
    x0: Tensor, epsilon: Tensor, measured: Spectrum, sigma: float, eta: float, noise: Tensor
) -> Tensor:
    """Return the next spectrum (Kawar et al. 2022, eq. 7 and 8), in the variance-exploding view, `[B, N]`.

    Args:
        x0: Spectrum of the denoised image, `[B, N]`.
        epsilon: That of the predicted noise.
        measured: What the measurement says.
        sigma: Next noise level.
        eta: Share of fresh noise.
        noise: Standard normal.
    """
    target, spread, known = measured
    kept = (1 - eta**2) ** 0.5 * sigma
    free = x0 + kept * epsilon + eta * sigma * noise
    # The measurement is noisier than the level: it only tells the direction.
    vague = x0 + kept * (target - x0) / spread.clamp(min=1e-12) + eta * sigma * noise
    b = MEASURED_SHARE
    sharp = (1 - b) * x0 + b * target + (sigma**2 - b**2 * spread.square()).clamp(min=0).sqrt() * noise
    return torch.where(known, torch.where(spread > sigma, vague, sharp), free)
