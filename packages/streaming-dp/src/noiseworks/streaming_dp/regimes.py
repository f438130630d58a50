"""The levels of training batches, and the training timesteps that inference levels stand for."""

from collections.abc import Sequence

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.streaming_dp.levels import REGIMES, ChunkLevels
from torch import Tensor

GREATEST = 80.0  # sigma of Karras' grid


def inference_timesteps(num_levels: int, num_train_timesteps: int) -> Tensor:
    """Return the training timestep of each of M levels, int64 [M], increasing.

    The noisiest level is the noisiest timestep ("trailing" spacing): fresh positions are pure noise, and a label
    has to say so. The authors' DDIM variant labels them with small timesteps instead.

    Raises:
        InputError: When M is not in 1 to `num_train_timesteps`.
    """
    check_number("num_levels", num_levels, low=1, high=num_train_timesteps, integer=True)
    return (torch.arange(1, num_levels + 1) * num_train_timesteps) // num_levels - 1


def karras_timesteps(alphas_cumprod: Tensor, num_levels: int, rho: float = 7.0) -> Tensor:
    """Return the training timestep of each of M levels, int64 [M], whose sigmas lie on Karras' grid.

    The grid (Karras et al. 2022, eq. 5) goes from the least sigma = sqrt((1 - abar) / abar) of the schedule to its
    greatest, at most 80; each level is the nearest timestep, and where several want one they move apart. The noisiest
    level is the noisiest timestep, as fresh positions are pure noise.

    Args:
        alphas_cumprod: Of the schedule, [N].
        num_levels: M, 1 to N.
        rho: How much denser the grid is at small sigmas.

    Raises:
        InputError: When M is out of range.
    """
    count = len(alphas_cumprod)
    check_number("num_levels", num_levels, low=1, high=count, integer=True)
    bar = alphas_cumprod.double().cpu()
    place = ((1 - bar) / bar) ** (0.5 / rho)
    even = torch.linspace(1, 0, num_levels, dtype=torch.float64).flip(0)  # a single level is the noisiest
    wanted = place[0] + even * (place[-1].clamp(max=GREATEST ** (1 / rho)) - place[0])
    nearest = (wanted[:, None] ** rho - place**rho).abs().argmin(dim=1)
    nearest[-1] = count - 1
    order = torch.arange(num_levels)
    free = (nearest - order).cummax(dim=0).values + order
    return torch.minimum(free, order + count - num_levels)


def training_levels(spec: ChunkLevels, regime: str, batch: int, generator: torch.Generator | None) -> Tensor:
    """Return the levels of a training batch under one regime, int64 [batch, Tp].

    - `constant`: one uniform level per sample, as in ordinary training.
    - `increasing`: from 0 to N - 1 along the horizon, the same for all samples.
    - `random`: a uniform level for every position.
    - `chunk_wise`: the levels of a cycle's start, lowered by j uniform in 0 to floor(N / h) - 1; one more would
      make the first chunk clean.

    Args:
        spec: Chunks, with N training timesteps as levels.
        regime: One of `REGIMES`.
        batch: Samples.
        generator: Of the draws.

    Raises:
        InputError: When the regime is unknown.
    """
    n, horizon = spec.num_levels, spec.horizon
    if regime == "constant":
        return torch.randint(n, (batch, 1), generator=generator).repeat(1, horizon)
    if regime == "increasing":
        return torch.linspace(0, n - 1, horizon, dtype=torch.float64).long().repeat(batch, 1)
    if regime == "random":
        return torch.randint(n, (batch, horizon), generator=generator)
    if regime == "chunk_wise":
        lower = torch.randint(n // spec.chunks, (batch, 1), generator=generator)
        return torch.tensor(spec.buffer) - lower
    raise InputError(f"regime must be one of {', '.join(REGIMES)}, got {regime!r}")


def draw_regime(weights: Sequence[float], generator: torch.Generator | None) -> str:
    """Return the regime of a batch, drawn with the weights: one regime holds for all of its samples."""
    index = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=generator)
    return REGIMES[int(index)]
