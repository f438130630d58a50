"""SwiGLU experts, their sparse dispatch, and the merged form of a fixed choice of experts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.kernels.experts import group_by_expert
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """An expert: `W_out (value * SiLU(gate))` with (value, gate) = W_in x + b.

    Args:
        width: Width D of a token.
        hidden: Hidden width.
        dropout: Of the hidden layer.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the expert's output for tokens [..., D]."""
        value, gate = self.project(x).chunk(2, dim=-1)
        return self.out(self.dropout(value * F.silu(gate)))


def mixture(experts: Sequence[nn.Module], x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
    """Return y_t = sum_j gates[t, j] E_{ids[t, j]}(x_t): each expert runs once, on its own tokens.

    Args:
        experts: The experts.
        x: Tokens [T, D].
        ids: Experts of each token, int64 [T, k].
        gates: Their weights [T, k].
    """
    k = ids.shape[1]
    order, ends = group_by_expert(ids.reshape(-1), len(experts))
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    parts = x.index_select(0, order // k).split(sizes)
    out = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True) if len(part)])
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    out = out.index_select(0, inverse).unflatten(0, (-1, k))
    return (out.float() * gates[..., None]).sum(dim=1).to(x.dtype)


class Merged(NamedTuple):
    """A fixed choice of k experts as one MLP.

    Attributes:
        w_in: [2 k h, D]: all values, then all gates (merged), or [k, D, 2 h] (bmm).
        b_in: [2 k h], or [k, 1, 2 h].
        w_out: [D, k h] with the mixture's weights in it, or [k, h, D] without them.
        gates: The mixture's weights [k, 1, 1] (bmm), else None.
        identity: Weight of the identity expert, 0 when it is not chosen.
    """

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    gates: Tensor | None
    identity: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mixture's output for tokens [..., D]."""
        if self.gates is None:
            value, gate = F.linear(x, self.w_in, self.b_in).chunk(2, dim=-1)
            y = F.linear(value * F.silu(gate), self.w_out)
        else:
            rows = x.reshape(1, -1, x.shape[-1]).expand(len(self.w_in), -1, -1)
            value, gate = torch.baddbmm(self.b_in, rows, self.w_in).chunk(2, dim=-1)
            y = (torch.bmm(value * F.silu(gate), self.w_out) * self.gates).sum(dim=0).reshape(x.shape)
        return y if self.identity == 0 else y + self.identity * x


def merge_inputs(experts: Sequence[SwiGLU]) -> tuple[Tensor, Tensor]:
    """Return the first layers of experts as one: all values, then all gates, [2 k h, D] and [2 k h]."""
    weights = [expert.project.weight.chunk(2) for expert in experts]
    biases = [expert.project.bias.chunk(2) for expert in experts]
    return (
        torch.cat([w for half in zip(*weights, strict=True) for w in half]),
        torch.cat([b for half in zip(*biases, strict=True) for b in half]),
    )


def merge_outputs(experts: Sequence[SwiGLU], gates: Sequence[float]) -> Tensor:
    """Return the second layers of experts as one, [D, k h], each times its weight in the mixture."""
    return torch.cat([gate * expert.out.weight for expert, gate in zip(experts, gates, strict=True)], dim=1)
