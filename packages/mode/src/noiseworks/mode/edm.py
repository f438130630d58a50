"""The EDM formulation: preconditioned denoising, training densities of the noise level, and DDIM sampling."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.grids import append_zero, exponential_sigmas, karras_sigmas
from noiseworks.core.params import edm_preconditioning
from noiseworks.core.schedules import expand
from noiseworks.mode.config import Density, Grid
from torch import Tensor


def denoise(network: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Return D(a; sigma) = c_skip a + c_out F(c_in a), in float32 (Karras et al. 2022, eq. 7).

    Args:
        network: F, without its other inputs.
        x: Noisy actions a [B, T, A].
        sigma: Noise level, [B] or a scalar tensor.
        sigma_data: Standard deviation of clean actions.
    """
    c = edm_preconditioning(sigma.double(), sigma_data)
    c_skip, c_out, c_in = (expand(v, x).float() for v in (c.c_skip, c.c_out, c.c_in))
    return c_skip * x + c_out * network(c_in * x).float()


def edm_loss(
    network: Callable[[Tensor], Tensor], clean: Tensor, sigma: Tensor, noise: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """Return the mean of (F - (a - c_skip (a + sigma eps)) / c_out)^2, the EDM-weighted denoising loss.

    Args:
        network: F, without its other inputs.
        clean: Actions a [B, T, A].
        sigma: Noise levels [B].
        noise: Standard normals eps [B, T, A].
        sigma_data: Standard deviation of clean actions.
    """
    c = edm_preconditioning(sigma.double(), sigma_data)
    c_skip, c_out, c_in = (expand(v, clean).float() for v in (c.c_skip, c.c_out, c.c_in))
    noisy = clean + expand(sigma, clean).float() * noise
    target = (clean - c_skip * noisy) / c_out
    return (network(c_in * noisy).float() - target).square().mean()


def log_logistic_quantile(
    u: Tensor, loc: float = math.log(0.5), scale: float = 0.5, low: float = 0.001, high: float = 80.0
) -> Tensor:
    """Return the u-quantile of a log-logistic density cut to [low, high], float64.

    With F(x) = sigmoid((ln x - loc) / scale): sigma = exp(loc + scale logit(v)), v = F(low) + u (F(high) - F(low)).
    """
    ends = torch.tensor([low, high], dtype=torch.float64).log()
    first, last = torch.sigmoid((ends - loc) / scale)
    v = first + u.double() * (last - first)
    return torch.exp(loc + scale * (v.log() - torch.log1p(-v))).clamp(low, high)


def sample_sigmas(
    n: int,
    *,
    density: Density = "log-logistic",
    sigma_data: float = 0.5,
    sigma_min: float = 0.001,
    sigma_max: float = 80.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return n training noise levels, float64 on the CPU.

    Args:
        n: How many.
        density: `log-logistic` around sigma_data with scale 0.5 (the paper's), `log-normal` of mean -1.2 and
            deviation 1.2, `split-log-normal` of the same median with deviations 1.2 below and 0.6 above it,
            `log-uniform`, `uniform`, `v-diffusion`, or `discrete`: the levels of the 10-step grid.
        sigma_data: Standard deviation of clean actions.
        sigma_min: Smallest level.
        sigma_max: Largest level.
        generator: Source of the draws.

    Raises:
        InputError: When an argument is out of range.
    """
    check_choice("density", density, get_args(Density))
    check_number("sigma_min", sigma_min, low=0, low_open=True)
    check_number("sigma_max", sigma_max, low=sigma_min, low_open=True)
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    if density == "log-logistic":
        return log_logistic_quantile(u, math.log(sigma_data), 0.5, sigma_min, sigma_max)
    if density == "log-normal":
        normal = torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return torch.exp(-1.2 + 1.2 * normal).clamp(sigma_min, sigma_max)
    if density == "split-log-normal":  # each side's share of the draws is that of its deviation
        below, above, share = 1.2, 0.6, 1.2 / (1.2 + 0.6)
        side = torch.where(u < share, u / share, (1 - u) / (1 - share)) / 2
        normal = torch.special.ndtri(side.clamp(1e-12, 0.5))
        return torch.exp(-1.2 + normal * torch.where(u < share, below, -above)).clamp(sigma_min, sigma_max)
    if density == "log-uniform":
        return sigma_min * (sigma_max / sigma_min) ** u
    if density == "uniform":
        return sigma_min + (sigma_max - sigma_min) * u
    if density == "v-diffusion":
        first, last = (math.atan(s / sigma_data) * 2 / math.pi for s in (sigma_min, sigma_max))
        return torch.tan((first + (last - first) * u) * math.pi / 2) * sigma_data
    levels = exponential_sigmas(10, sigma_min, sigma_max)
    return levels[(u * len(levels)).long()]


def sampling_sigmas(
    n: int = 10, *, grid: Grid = "exponential", sigma_min: float = 0.001, sigma_max: float = 80.0
) -> Tensor:
    """Return n falling noise levels and the clean end 0, float64 [n + 1].

    Args:
        n: Network calls of a first-order sampler.
        grid: How the levels are spaced: evenly in ln sigma (the paper's), or by Karras et al. with rho 7.
        sigma_min: Smallest level above 0.
        sigma_max: Largest level.

    Raises:
        InputError: When an argument is out of range.
    """
    check_number("num_inference_steps", n, low=1, integer=True)
    check_choice("grid", grid, get_args(Grid))
    if grid == "karras":
        return append_zero(karras_sigmas(n, sigma_min, sigma_max))
    return append_zero(exponential_sigmas(n, sigma_min, sigma_max))


def ddim_step(x: Tensor, x0: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """Return (s'/s) a + (1 - s'/s) D, the first-order exponential integrator; Euler's step is the same."""
    ratio = next_sigma / sigma
    return ratio * x + (1 - ratio) * x0


def sample(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return clean actions from noise by DDIM, the paper's sampler: one call of D a level.

    Args:
        denoise: D(a, sigma).
        x: The start, of standard deviation `sigmas[0]`, [B, T, A].
        sigmas: Falling levels, the last one 0.

    Raises:
        InputError: When levels do not fall to 0.
    """
    if len(sigmas) < 2 or sigmas[-1] != 0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise InputError("sigmas must fall and end with 0")
    for sigma, following in itertools.pairwise(sigmas):
        x = ddim_step(x, denoise(x, sigma), sigma, following)
    return x
