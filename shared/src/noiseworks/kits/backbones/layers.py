"""Parts of vision transformers: attention, MLP, sinusoidal tables; parameter names as in timm."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with a GELU between.

    Args:
        width: Of input and output.
        hidden: Of the hidden layer.
        approximate: "tanh" as in DiT, "none" as in ViT.
    """

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D)."""
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Square patches as tokens."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (B, N, D) of images (B, C, H, W), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)

    def embed(self, patches: Tensor) -> Tensor:
        """Return the tokens (B, K, D) of patches (B, K, patch² C) in (row, column, channel) order.

        Only the patches that an encoder sees are embedded so.
        """
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return [sin, cos] of positions (N,) at width/2 frequencies from 1 down to almost 1/10000, float64 (N, width)."""
    frequency = 1 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = positions.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def grid_positions(side: int, width: int) -> Tensor:
    """Return the fixed position table of a square grid, float32 (side², width): half for the column, half the row."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    parts = [sinusoids(axis.flatten(), width // 2) for axis in (columns, rows)]
    return torch.cat(parts, dim=1).float()


def timestep_waves(timesteps: Tensor, width: int = 256) -> Tensor:
    """Return [cos, sin] of timesteps (B,) at frequencies 10000^(-i / (width/2)), float32 (B, width)."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps[:, None].float() * torch.exp(-math.log(10000) * index / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
