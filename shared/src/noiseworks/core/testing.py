"""Small helpers for tests of samplers: a known mixture, error measures and convergence orders."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from noiseworks.core.closed_form import GaussianMixture
from noiseworks.core.schedules import Level
from torch import Tensor


def three_peaks() -> GaussianMixture:
    """Return an uneven mixture of three correlated Gaussians in the plane, of about unit spread."""
    return GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([[1.0, 0.5], [-1.2, 0.3], [0.1, -1.5]], dtype=torch.float64),
        torch.tensor(
            [[[0.10, 0.04], [0.04, 0.06]], [[0.05, 0.0], [0.0, 0.15]], [[0.08, -0.03], [-0.03, 0.05]]],
            dtype=torch.float64,
        ),
    )


def max_relative_error(actual: Tensor, reference: Tensor) -> float:
    """Return the largest absolute error in units of the reference's largest entry, computed in float64."""
    reference = reference.double()
    return float((actual.double() - reference).abs().max() / reference.abs().max())


def convergence_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Return the slope p of `error ∝ steps^{−p}`, fitted by least squares in logarithms."""
    x = torch.tensor([math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def run(x: Tensor, levels: Sequence[Level], step: Callable[[Tensor, Level, Level], Tensor]) -> Tensor:
    """Return the end of a run: `step(x, level, next_level) -> x` over successive levels, noisy to clean."""
    for level, next_level in pairwise(levels):
        x = step(x, level, next_level)
    return x
