"""The sinusoidal embedding of diffusion steps that both policy networks use."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPosEmb(nn.Module):
    """Sines, then cosines, of a step times 10000^(-i / (dim/2 - 1)).

    Args:
        dim: Width, even and at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        """Return the embedding [..., dim] of steps [...]."""
        half = self.dim // 2
        scale = math.log(10_000) / (half - 1)
        frequencies = torch.exp(torch.arange(half, device=timestep.device) * -scale)
        angles = timestep[..., None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def step_batch(timestep: Tensor | int, sample: Tensor) -> Tensor:
    """Return the diffusion step as one entry per row of the sample, int64 [B] on its device."""
    steps = torch.as_tensor(timestep, device=sample.device)
    return steps.expand(len(sample)) if steps.ndim == 0 else steps.expand(len(sample), *steps.shape[1:])
