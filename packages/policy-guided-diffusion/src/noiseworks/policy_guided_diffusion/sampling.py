"""Sampling: EDM's stochastic solver with policy guidance before each step (algorithm 1).

`sample_windows` takes any denoiser D(x; σ); without a policy it is EDM's sampler, bit for bit.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.grids import append_zero, karras_sigmas
from noiseworks.policy_guided_diffusion.guidance import Guide
from noiseworks.policy_guided_diffusion.options import Sampling
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
CHURNED = (0.05, 50.0)  # noise levels at which noise is added
LARGEST_CHURN = math.sqrt(2) - 1


def noise_levels(sampling: Sampling) -> Tensor:
    """Return σ_0 to σ_N, the last one 0, float64 [N + 1]."""
    return append_zero(karras_sigmas(sampling.steps, sampling.sigma_min, sampling.sigma_max, sampling.rho))


def churn_rates(sampling: Sampling) -> list[float]:
    """Return γ_i = min(S_churn / N, √2 - 1) for 0.05 <= σ_i <= 50, else 0, of the steps i = 0 to N - 1."""
    rate = min(sampling.churn / sampling.steps, LARGEST_CHURN)
    low, high = CHURNED
    return [rate if low <= sigma <= high else 0.0 for sigma in noise_levels(sampling)[:-1].tolist()]


def sample_windows(
    denoise: Denoise,
    x: Tensor,
    sampling: Sampling,
    guide: Guide | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return clean windows [B, H, C] in the network's units from standard normal x.

    Args:
        denoise: D(x; σ) with σ [B].
        x: Standard normal noise [B, H, C].
        sampling: The solver's settings.
        guide: The target policy, None for the data's own behaviour.
        generator: Of the noise that is added; guidance draws none.

    Raises:
        NonFiniteError: When a window becomes NaN or infinite.
    """
    sigmas, rates = noise_levels(sampling).tolist(), churn_rates(sampling)
    weights = [0.0] * sampling.steps if guide is None else guide.weights(sampling.steps)

    def call(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, torch.full((len(x),), sigma, dtype=torch.float64, device=x.device))

    x = sigmas[0] * x
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        if weights[i] > 0:
            point = call(x, sigma) if guide.guidance.at == "denoised" else x
            x = guide.push(x, point, weights[i])
        churned, raised = x, (1 + rates[i]) * sigma
        if rates[i] > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            churned = x + math.sqrt(raised**2 - sigma**2) * sampling.churn_noise * noise
        step = following - raised
        slope = (churned - call(churned, raised)) / raised
        ahead = (churned if sampling.euler_from == "churned" else x) + step * slope
        if following > 0 and sampling.order == 2:
            second = (ahead - call(ahead, following)) / following
            x = churned + step * (slope + second) / 2
        else:
            x = ahead
        check_finite("trajectories", x, i)
    return x
