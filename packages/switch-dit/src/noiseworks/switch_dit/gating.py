"""Gates that see the timestep alone."""

import torch.nn.functional as F
from torch import Tensor, nn


class TimestepGate(nn.Module):
    """`p = softmax(G SiLU(e_t) + b)`, of which the k largest count.

    Args:
        width: D of the timestep embedding.
        experts: E.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, e: Tensor) -> Tensor:
        """Return the probabilities (B, E) of timestep embeddings (B, D), in float32: a half would round to 0."""
        return F.linear(F.silu(e.float()), self.linear.weight.float(), self.linear.bias.float()).softmax(-1)


def choose(probs: Tensor, top_k: int, renormalize: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k likeliest experts, int64 (B, k), and their gates (B, k); equal ones by lowest number.

    The gates are the probabilities themselves, whose sum is below 1, unless `renormalize` scales them to 1.
    """
    gates, chosen = probs.sort(dim=-1, descending=True, stable=True)
    gates, chosen = gates[..., :top_k], chosen[..., :top_k]
    return chosen, gates / gates.sum(-1, keepdim=True) if renormalize else gates
