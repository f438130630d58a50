"""The arithmetic that both hosts share: RMS norm, rotary positions, attention without a causal mask."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in float32, cast to the input's type, then multiplied by the weight.

    Args:
        dim: Features.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the normalised features, shape and type of `hidden`."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


def rotary(heads: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn queries or keys by their positions; first and second half of the head pair up, in float32.

    Args:
        heads: [B, H, L, d].
        positions: Absolute positions, int64 [L] or [B, L].
        theta: Base of the frequencies `theta^(-2i/d)`.

    Returns:
        [B, H, L, d] of the input's type.
    """
    dim = heads.shape[-1]
    frequencies = theta ** (-torch.arange(0, dim, 2, device=heads.device, dtype=torch.float32) / dim)
    angles = positions.to(torch.float32).unsqueeze(-1) * frequencies
    if angles.ndim == 3:
        angles = angles.unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(heads.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √d) v with every query seeing every key that the mask allows.

    Args:
        q: [B, H, L, d].
        k: [B, G, N, d], where G divides H (grouped-query attention).
        v: [B, G, N, d].
        mask: bool, broadcastable to [B, H, L, N]; None sees everything.

    Returns:
        [B, L, H d].
    """
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Return a mask for `attend`: keys of padding are hidden, and rows of padding see all keys alike.

    Args:
        attention_mask: 1 for tokens and 0 for padding, [B, N]; or bool [B, 1, L, N] as it is; or None.

    Raises:
        ValueError: On another number of dimensions.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim == 4:
        allowed = attention_mask.bool()
    elif attention_mask.ndim == 2:
        allowed = attention_mask.bool()[:, None, None, :]
    else:
        raise ValueError(f"attention_mask needs 2 or 4 dimensions, got {attention_mask.ndim}")
    if bool(allowed.all()):
        return None
    # A row that may see nothing would be a softmax over nothing, NaN in some kernels.
    return allowed | ~allowed.any(-1, keepdim=True)
