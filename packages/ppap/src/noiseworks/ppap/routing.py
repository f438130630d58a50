"""Which expert owns which timestep."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from noiseworks.core.errors import InputError
from torch import Tensor


def even_bounds(count: int, steps: int) -> list[int]:
    """Return floor(n T / N) for n = 0..N; expert n owns t with bounds[n] <= t < bounds[n + 1].

    Args:
        count: N.
        steps: T.

    Raises:
        InputError: When there are more experts than timesteps, or none.
    """
    if not 1 <= count <= steps:
        raise InputError(f"experts must be from 1 to the {steps} timesteps, got {count}")
    return [n * steps // count for n in range(count + 1)]


def snr_bounds(count: int, alphas_cumprod: Tensor) -> list[int]:
    """Return bounds between which the logarithm of signal to noise falls by equal amounts.

    Args:
        count: N.
        alphas_cumprod: (T,), falling.

    Raises:
        InputError: When there are more experts than timesteps, or an expert would own none.
    """
    even_bounds(count, len(alphas_cumprod))
    table = alphas_cumprod.double().clamp(min=1e-12)
    fallen = (table / (1 - table).clamp(min=1e-12)).log()
    fallen = (fallen[0] - fallen) / (fallen[0] - fallen[-1])
    wanted = torch.arange(1, count, dtype=torch.float64) / count
    inner = torch.searchsorted(fallen, wanted).tolist()
    bounds = [0, *inner, len(table)]
    if any(low >= high for low, high in pairwise(bounds)):
        raise InputError(f"spacing snr leaves one of {count} experts without a timestep; use fewer, or even")
    return bounds


def owner(t: Tensor | float, bounds: Sequence[int]) -> Tensor:
    """Return the number of the expert that owns each timestep, int64.

    The released lookup takes the first interval with lo <= t <= hi and so gives a bound to the expert below, which
    never saw it in training; DDIM of 25 steps hits all four inner bounds of five experts.

    Args:
        t: Original timesteps, also between two of them.
        bounds: From `even_bounds` or `snr_bounds`.
    """
    inner = torch.tensor(bounds[1:-1], dtype=torch.float64)
    return torch.bucketize(torch.as_tensor(t).double().cpu(), inner, right=True)
