"""Routers that see the noise level: probabilities, the choice of experts and the balancing losses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.mode.config import Balance
from torch import Tensor, nn

SMALLEST = 1e-9  # probabilities are kept this far from 0 and 1, so that logarithms and quotients exist


class Routing(NamedTuple):
    """What one block's router did.

    Attributes:
        logits: [R, E], R rows that share a decision's probabilities (samples, or tokens).
        probs: Probabilities, float32 [R, E].
        ids: Chosen experts of each token, int64 [T, k].
        gates: Their weights, float32 [T, k], sum 1.
    """

    logits: Tensor
    probs: Tensor
    ids: Tensor
    gates: Tensor


class Router(nn.Module):
    """Two linear layers with a GELU, `logits = W_2 GELU(W_1 n)`; the paper writes a single matrix W_R.

    Args:
        width: Width D of the input.
        num_experts: Number of experts to choose from.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [..., E] of rows [..., D]."""
        return self.out(F.gelu(self.hidden(x)))


def probabilities(logits: Tensor) -> Tensor:
    """Return p = softmax(logits), float32, clamped to [1e-9, 1 - 1e-9]."""
    return logits.float().softmax(dim=-1).clamp(SMALLEST, 1 - SMALLEST)


def select_experts(probs: Tensor, top_k: int, draws: int | None = None) -> tuple[Tensor, Tensor]:
    """Choose k experts per row and weight them by p, renormalised to sum 1.

    Args:
        probs: Probabilities [R, E].
        top_k: Experts to choose, k.
        draws: None for the k likeliest experts. A number n draws, n times per row, k experts without
            replacement in proportion to p (Gumbel top-k), from torch's global generator.

    Returns:
        Expert ids, int64 [R, k], and gates [R, k]; with draws [R, n, k] each.

    Raises:
        InputError: When k is more than the number of experts.
    """
    check_number("top_k", top_k, low=1, high=probs.shape[-1], integer=True)
    if draws is None:
        ids = probs.topk(top_k, dim=-1).indices
        chosen = probs.gather(-1, ids)
    else:
        uniform = torch.rand((len(probs), draws, probs.shape[-1]), device=probs.device).clamp_min(1e-30)
        # log p - log E with E ~ Exp(1): its k largest entries are a draw without replacement.
        ids = (probs.detach().log()[:, None] - (-uniform.log()).log()).topk(top_k, dim=-1).indices
        chosen = probs[:, None].expand(-1, draws, -1).gather(-1, ids)
    return ids, chosen / chosen.sum(dim=-1, keepdim=True)


def load_balance(routing: Routing, balance: Balance = "masked") -> Tensor:
    """Return the balancing loss E sum_i P_i f_i (paper eq. 9): k when all experts are used evenly.

    f_i is the share of tokens that go to expert i (the shares sum to k).

    Args:
        routing: What a router did.
        balance: P_i as the mean weight of expert i in the mixture (`masked`) or its mean probability
            (`softmax`). The two differ by the weights' renormalisation.
    """
    experts, tokens = routing.probs.shape[-1], len(routing.ids)
    count = torch.zeros(experts, device=routing.ids.device)
    flat = routing.ids.reshape(-1)
    share = count.scatter_add(0, flat, torch.ones_like(flat, dtype=count.dtype)) / tokens
    if balance == "softmax":
        load = routing.probs.mean(dim=0)
    else:
        load = torch.zeros_like(share).scatter_add(0, flat, routing.gates.reshape(-1)) / tokens
    return experts * (load * share).sum()


def router_z_loss(routing: Routing) -> Tensor:
    """Return the mean of logsumexp(logits)^2 (Zoph et al. 2022), which keeps logits small."""
    return routing.logits.float().logsumexp(dim=-1).square().mean()


def mean_over_layers(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of the layers' losses.

    Raises:
        InputError: When there is none: the model is dense, or was not asked to record its routing.
    """
    if not losses:
        raise InputError("no routing was recorded: the model is dense or the call had no `record` list")
    return torch.stack(list(losses)).mean()


def usage_information(usage: Tensor) -> Tensor:
    """Return the mutual information of noise level and expert in bits, one value a layer.

    Args:
        usage: Weights of the experts at each noise level, [L, N, E], rows of sum 1; levels count equally.
    """
    usage = usage.double()
    mean = usage.mean(dim=1, keepdim=True)
    terms = torch.special.xlogy(usage, usage) - torch.special.xlogy(usage, mean)
    return terms.sum(dim=-1).mean(dim=1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
