"""Samplers over falling noise levels, as functions of a denoiser D(a; sigma) that takes the level as a float.

A level is a Python float, so a cache can know it without asking the device. `evaluation_sigmas` lists every level
at which a sampler will call the denoiser.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level
from noiseworks.core.solvers import History, dpmpp_2m_step, dpmpp_2s_step
from noiseworks.core.steps import euler_ancestral_step, euler_step, heun_step
from noiseworks.mode.dpm_solver import dpm_adaptive, dpm_fast, fast_legs
from torch import Tensor

Sampler = Literal[
    "ddim",
    "euler",
    "heun",
    "lms",
    "dpm2",
    "dpm2-ancestral",
    "euler-ancestral",
    "dpmpp-2m",
    "dpmpp-2s",
    "dpmpp-sde",
    "dpmpp-2m-sde",
    "dpm-fast",
    "dpm-adaptive",
]
Denoiser = Callable[[Tensor, float], Tensor]
LMS_ORDER = 4
CHURNED = ("euler", "heun", "dpm2")
NOISY = ("dpm2-ancestral", "euler-ancestral", "dpmpp-sde", "dpmpp-2m-sde")


def ddim_step(x: Tensor, x0: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """Return (s'/s) a + (1 - s'/s) D, the first-order exponential integrator; Euler's step without churn is it."""
    ratio = next_sigma / sigma
    return ratio * x + (1 - ratio) * x0


def middle_sigma(sigma: float, next_sigma: float) -> float:
    """Return the level halfway in ln sigma."""
    return math.sqrt(sigma * next_sigma)


def raised_sigma(sigma: float, steps: int, churn: float) -> float:
    """Return the level to which noise is added before a step: sigma (1 + min(churn / steps, sqrt 2 - 1)).

    Source: Karras et al. 2022, algorithm 2, with churn at all levels and unit noise.
    """
    return sigma * (1 + min(churn / steps, math.sqrt(2) - 1))


def sigma_down(sigma: float, next_sigma: float) -> float:
    """Return the level that an ancestral step goes down to before it adds noise up to `next_sigma`."""
    up = min(next_sigma, math.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2))
    return math.sqrt(max(0.0, next_sigma**2 - up**2))


def evaluation_sigmas(sigmas: Sequence[float], sampler: Sampler = "ddim", churn: float = 0.0) -> list[float]:
    """Return the levels at which a sampler calls the denoiser; none where it chooses them as it goes (dpm-adaptive).

    Args:
        sigmas: Falling levels, the last one 0.
        sampler: The sampler.
        churn: Of `sample`.
    """
    check_sampler(sampler, churn)
    if sampler == "dpm-adaptive":
        return []
    if sampler == "dpm-fast":
        return [level for leg in fast_legs(sigmas) for level in leg.levels()] + [sigmas[-2]]
    found: list[float] = []
    for level, following in itertools.pairwise(sigmas):
        sigma = raised_sigma(level, len(sigmas) - 1, churn)
        found.append(sigma)
        if following > 0 and churn and sampler == "heun":  # without churn it is the next step's own level
            found.append(following)
        if following > 0 and sampler in ("dpm2", "dpmpp-2s", "dpmpp-sde"):
            found.append(middle_sigma(sigma, following))
        if following > 0 and sampler == "dpm2-ancestral":
            found.append(middle_sigma(sigma, sigma_down(sigma, following)))
    return found


def check_sampler(sampler: Sampler, churn: float) -> None:
    """Refuse a sampler that is unknown, or has no churn.

    Raises:
        InputError: Naming it.
    """
    check_choice("sampler", sampler, get_args(Sampler))
    check_number("churn", churn, low=0)
    if churn and sampler not in CHURNED:
        raise InputError(f"churn is for the samplers {', '.join(CHURNED)}, not for {sampler}; leave it at 0")


def sample(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    sampler: Sampler = "ddim",
    draw: Callable[[], Tensor] | None = None,
    churn: float = 0.0,
) -> Tensor:
    """Return clean actions from noise.

    Args:
        denoise: D(a, sigma).
        x: The start, of standard deviation `sigmas[0]`, [B, T, A].
        sigmas: Falling levels, the last one 0.
        sampler: `ddim` is the paper's and calls D once a level, as `euler` (the same without churn), `lms`,
            `dpmpp-2m`, `dpm-fast` and the ancestral Euler do. `heun`, `dpm2`, `dpmpp-2s` and `dpmpp-sde` call it
            twice, but once on the step to 0. `dpm-adaptive` calls it as often as its error asks for.
        draw: Returns standard normals of x's shape, for samplers that add noise.
        churn: Noise that `euler`, `heun` and `dpm2` add before each step (S_churn of Karras et al. 2022).

    Raises:
        InputError: When levels do not fall to 0, a sampler that adds noise has no `draw` or one without churn has
            some.
    """
    check_sampler(sampler, churn)
    if len(sigmas) < 2 or sigmas[-1] != 0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise InputError("sigmas must fall and end with 0")
    if draw is None and (churn or sampler in NOISY):
        raise InputError(f"the sampler {sampler} adds noise: pass draw")
    if sampler in ("lms", "dpmpp-2m", "dpmpp-2m-sde"):
        return _multistep(denoise, x, sigmas, sampler, draw)
    if sampler in ("dpm-fast", "dpm-adaptive"):
        return (dpm_fast if sampler == "dpm-fast" else dpm_adaptive)(denoise, x, sigmas)
    for level, following in itertools.pairwise(sigmas):
        sigma = raised_sigma(level, len(sigmas) - 1, churn)
        if churn:
            x = x + math.sqrt(sigma**2 - level**2) * draw()
        x = _step(denoise, x, denoise(x, sigma), sigma, following, sampler, draw)
    return x


def _step(
    denoise: Denoiser,
    x: Tensor,
    x0: Tensor,
    sigma: float,
    following: float,
    sampler: Sampler,
    draw: Callable[[], Tensor] | None,
) -> Tensor:
    if following == 0 or sampler in ("ddim", "euler"):
        return ddim_step(x, x0, sigma, following)
    here, there = _scalar(sigma, x), _scalar(following, x)
    if sampler == "heun":
        return heun_step(x, x0, here, there, lambda a, _: denoise(a, following)).sample
    if sampler == "euler-ancestral":
        return euler_ancestral_step(x, x0, here, there, noise=draw()).sample
    if sampler == "dpmpp-2s":
        middle = middle_sigma(sigma, following)
        levels = (_level(s, x) for s in (sigma, middle, following))
        return dpmpp_2s_step(x, x0, *levels, lambda a, _: denoise(a, middle)).sample
    if sampler == "dpmpp-sde":
        return _sde_step(denoise, x, x0, sigma, following, draw)
    return _dpm2_step(denoise, x, x0, sigma, following, draw if sampler == "dpm2-ancestral" else None)


def _dpm2_step(
    denoise: Denoiser,
    x: Tensor,
    x0: Tensor,
    sigma: float,
    following: float,
    draw: Callable[[], Tensor] | None,
) -> Tensor:
    """DPM-Solver-2 (Karras et al. 2022, second-order with midpoint in ln sigma), ancestral with a `draw`."""
    end = following if draw is None else sigma_down(sigma, following)
    middle = middle_sigma(sigma, end)
    halfway = euler_step(x, x0, sigma, middle).sample
    slope = (halfway - denoise(halfway, middle)) / middle
    x = x + slope * (end - sigma)
    return x if draw is None else x + math.sqrt(max(0.0, following**2 - end**2)) * draw()


def _sde_step(
    denoise: Denoiser, x: Tensor, x0: Tensor, sigma: float, following: float, draw: Callable[[], Tensor]
) -> Tensor:
    """DPM-Solver++(2S) of the stochastic equation, midpoint in ln sigma; both noises are of one Brownian path."""
    middle = middle_sigma(sigma, following)
    first, second = math.sqrt(sigma - middle) * draw(), math.sqrt(middle - following) * draw()

    def stochastic(clean: Tensor, end: float, path: Tensor) -> Tensor:
        down = sigma_down(sigma, end)
        up = math.sqrt(max(0.0, end**2 - down**2))
        return ddim_step(x, clean, sigma, down) + up / math.sqrt(sigma - end) * path

    halfway = stochastic(x0, middle, first)
    return stochastic(denoise(halfway, middle), following, first + second)  # r = 1/2: the midpoint's alone


def _multistep(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    sampler: Sampler,
    draw: Callable[[], Tensor] | None,
) -> Tensor:
    history: History | None = None
    slopes: list[Tensor] = []
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0 = denoise(x, sigma)
        if sampler == "lms":
            slopes = [*slopes, (x - x0) / sigma][-LMS_ORDER:]
            weights = lms_weights(sigmas[: i + 1][-len(slopes) :], sigma, following)
            x = x + sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
            continue
        sde = sampler == "dpmpp-2m-sde"
        noise = draw() if sde and following > 0 else None
        levels = (_level(sigma, x), _level(following, x))
        step, history = dpmpp_2m_step(x, x0, *levels, history, noise=noise, sde=sde)
        x = step.sample
    return x


def lms_weights(past: Sequence[float], sigma: float, following: float) -> list[float]:
    """Return the integrals from `sigma` to `following` of the Lagrange polynomials on past levels.

    Args:
        past: The last levels, the present one last.
        sigma: Present level.
        following: Next level.
    """
    weights = []
    for j, node in enumerate(past):
        coefficients = torch.ones(1, dtype=torch.float64)  # of the polynomial, lowest power first
        for other in [s for i, s in enumerate(past) if i != j]:
            shifted = torch.cat((coefficients.new_zeros(1), coefficients))
            kept = torch.cat((coefficients, coefficients.new_zeros(1)))
            coefficients = (shifted - other * kept) / (node - other)
        powers = torch.arange(1, len(coefficients) + 1, dtype=torch.float64)
        antiderivative = coefficients / powers
        weights.append(float((antiderivative * (following**powers - sigma**powers)).sum()))
    return weights


def _scalar(sigma: float, x: Tensor) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64, device=x.device)


def _level(sigma: float, x: Tensor) -> Level:
    value = _scalar(sigma, x)
    return Level(torch.ones_like(value), value)
