"""The denoiser: a one-dimensional U-Net over time under EDM's preconditioning, and its loss (Karras et al. 2022).

The U-Net is that of the paper's code: no residual connections, max-pooling down, nearest-neighbour resizing up. Its
normalisation there sees one time step at a time, which `norm_scope="step"` keeps.
"""

import math

import torch
import torch.nn.functional as F
from noiseworks.core.params import edm_preconditioning
from noiseworks.policy_guided_diffusion.options import Architecture
from torch import Tensor, nn

GROUPS = 8
SIGMA_DATA = 1.0  # windows are standardised
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2


class Normalise(nn.Module):
    """Group normalisation of [B, C, L], over a group's channels in each time step or in the whole window."""

    def __init__(self, channels: int, scope: str) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.scope = scope

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x [B, C, L]."""
        if self.scope == "sequence":
            return self.norm(x)
        rows = x.transpose(1, 2)
        grouped = rows.unflatten(-1, (GROUPS, -1))
        variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
        grouped = (grouped - mean) * torch.rsqrt(variance + self.norm.eps)
        return (grouped.flatten(-2) * self.norm.weight + self.norm.bias).transpose(1, 2)


class Level(nn.Module):
    """Two convolutions, each normalised, with the time added after the first."""

    def __init__(self, inputs: int, outputs: int, time_dim: int, scope: str) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_dim, outputs)
        self.first_norm = Normalise(outputs, scope)
        self.second = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.second_norm = Normalise(outputs, scope)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return features [B, outputs, L] of x [B, inputs, L]."""
        x = F.relu(self.first_norm(self.first(x) + self.time(F.silu(time))[..., None]))
        return F.relu(self.second_norm(self.second(x)))


class Raise(nn.Module):
    """From a level to the one above it: resize, convolve, add the time, join with the skip, convolve twice."""

    def __init__(self, inputs: int, outputs: int, time_dim: int, scope: str) -> None:
        super().__init__()
        self.up = nn.Conv1d(inputs, outputs, 2)
        self.time = nn.Linear(time_dim, outputs)
        self.up_norm = Normalise(outputs, scope)
        self.first = nn.Conv1d(2 * outputs, outputs, 3, padding=1)
        self.first_norm = Normalise(outputs, scope)
        self.second = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.second_norm = Normalise(outputs, scope)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        """Return features [B, outputs, L] of x [B, inputs, L / 2] and the skip [B, outputs, L]."""
        x = F.pad(F.interpolate(x, skip.shape[-1], mode="nearest"), (0, 1))  # an even kernel looks ahead
        x = F.relu(self.up_norm(self.up(x) + self.time(F.silu(time))[..., None]))
        x = F.relu(self.first_norm(self.first(torch.cat((x, skip), 1))))
        return F.relu(self.second_norm(self.second(x)))


class TrajectoryUnet(nn.Module):
    """F(x, c_noise) of windows [B, H, C].

    Args:
        channels: Width of a row, C.
        architecture: Sizes.
    """

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        features, scope = architecture.features, architecture.norm_scope
        widths = [features * 2**level for level in range(architecture.levels)]
        self.frequencies = max(features // 8, 2)
        self.embed = nn.Sequential(
            nn.Linear(2 * self.frequencies, features), nn.SiLU(), nn.Linear(features, features)
        )
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(Level(a, b, features, scope) for a, b in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(Raise(2 * width, width, features, scope) for width in widths[-2::-1])
        self.last = nn.Conv1d(widths[0], channels, 1)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return the output [B, H, C] of windows x and c_noise [B]."""
        time, x, skips = self.embed(sinusoids(noise, self.frequencies)), x.transpose(1, 2), []
        for number, level in enumerate(self.down):
            x = level(F.max_pool1d(x, 2) if number else x, time)
            skips.append(x)
        for level, skip in zip(self.up, skips[-2::-1], strict=True):
            x = level(x, skip, time)
        return self.last(x).transpose(1, 2)


def sinusoids(times: Tensor, count: int) -> Tensor:
    """Return sines, then cosines, of times [B] at `count` frequencies from 1 down to 1/10,000, [B, 2 count]."""
    rates = torch.exp(torch.arange(count, device=times.device) * (-math.log(10_000) / (count - 1)))
    angles = times[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


class Denoiser(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x, ln(σ) / 4), the clean windows expected at noise level σ.

    Args:
        channels: Width of a row, C.
        architecture: Sizes.
    """

    def __init__(self, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.net = TrajectoryUnet(channels, architecture)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return clean windows [B, H, C] of noisy x at levels σ [B], in float64 or x's type."""
        scale = edm_preconditioning(sigma.double(), SIGMA_DATA)
        c_skip, c_out, c_in = (c.to(x.dtype)[:, None, None] for c in (scale.c_skip, scale.c_out, scale.c_in))
        return c_skip * x + c_out * self.net(c_in * x, scale.c_noise.to(x.dtype))


def denoising_loss(denoiser: nn.Module, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Return the mean over all entries of w(σ) (D(x + σ ε; σ) - x)^2 with w = (σ^2 + 1) / σ^2.

    Args:
        denoiser: D.
        x: Clean windows [B, H, C] in the network's units.
        sigma: Noise level of each window, [B].
        noise: ε, standard normal, in x's shape.
    """
    weight = edm_preconditioning(sigma.double(), SIGMA_DATA).weight.to(x.dtype)[:, None, None]
    noisy = x + sigma.to(x.dtype)[:, None, None] * noise
    return (weight * (denoiser(noisy, sigma) - x).square()).mean()
