"""Noise levels of the trajectories x + t ε, how their number grows, and what the network is told of t.

Images are in [-1, 1] here, so that a noise of σ beside images in [0, 1] is t = 2σ.
"""

import math

import torch
from noiseworks.core.grids import karras_sigmas
from noiseworks.kits.backbones.layers import timestep_waves
from torch import Tensor

CLEANEST, NOISIEST, SIGMA_DATA = 0.002, 80.0, 0.5
FINE = 81  # levels of the grid on which a classifier's time is chosen


def levels(count: int) -> Tensor:
    """Return the grid t_0 = 80 > ... > t_{N-1} = 0.002, even in t^{1/7}, float64 (N,)."""
    return karras_sigmas(count, CLEANEST, NOISIEST, rho=7.0)


def nearest_level(sigma: float, count: int = FINE) -> float:
    """Return the level of the grid nearest to the noise σ of images in [0, 1]; what the network is told."""
    grid = levels(count)
    return float(grid[(grid - 2 * sigma).abs().argmin()])


def scale_curriculum(step: int, total: int, first: int = 20, last: int = 80) -> int:
    """Return the number of levels N(k) = min(s0 2^⌈k/K'⌉, s1) + 1 with K' = ⌈K / log2(⌈s1/s0⌉ + 1)⌉.

    Args:
        step: k.
        total: K.
        first: s0.
        last: s1.
    """
    stretch = math.ceil(total / math.log2(math.ceil(last / first) + 1))
    return min(first * 2 ** math.ceil(step / stretch), last) + 1


def target_decay(
    step: int, total: int, first: float = 0.99, last: float = 0.9999, sharpness: float = 10.0
) -> float:
    """Return the target network's decay μ(k), which rises from μ0 to almost μ1.

    With e = √((k/K)(μ1² - μ0²) + μ0²) and c = 2 / (1 + exp(-A (e - μ0) / (μ1 - μ0))) - 1, it is c μ1 + (1 - c) μ0.

    Args:
        step: k.
        total: K, from which on e is μ1.
        first: μ0.
        last: μ1.
        sharpness: A.
    """
    share = min(step / total, 1.0)
    e = math.sqrt(share * (last**2 - first**2) + first**2)
    c = 2 / (1 + math.exp(-sharpness * (e - first) / (last - first))) - 1
    return c * last + (1 - c) * first


def input_scale(t: Tensor) -> Tensor:
    """Return c_in = 1 / √(t² + 0.25), which gives noisy images unit variance."""
    return torch.rsqrt(t.square() + SIGMA_DATA**2)


def time_waves(t: Tensor, width: int) -> Tensor:
    """Return [cos, sin] of 250 ln t (B,) at `width`/2 frequencies, float32 (B, width)."""
    return timestep_waves(250 * t.clamp(min=CLEANEST).log(), width)
