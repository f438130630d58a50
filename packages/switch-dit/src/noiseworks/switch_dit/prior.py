"""The diffusion prior: which experts which timesteps should share, and the loss that draws the gates to it."""

import numpy as np
import torch
from noiseworks.kits.backbones import window_starts
from scipy.optimize import linear_sum_assignment
from torch import Tensor

EPSILON = 1e-6


def prior_table(num_tasks: int, depth: int, experts: int, top_k: int, alpha: float) -> Tensor:
    """Return P, float32 (T, U) with U = L E: a sliding window of k L units of all blocks' experts a timestep.

    L units are in the windows of all timesteps: the shared expert of every block.
    """
    units, active = depth * experts, top_k * depth
    starts = window_starts(num_tasks, units, active, alpha)[:, None]
    places = torch.arange(units)
    return ((places >= starts) & (places < starts + active)).float()


def match(used: Tensor, prior: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """Return the prior's column for every unit, and the share of entries that then agree.

    The assignment minimises `Σ_t |q[t, a] - P[t, b]|`, which for tables of 0 and 1 is `Σ q + Σ P - 2 qᵀ P`. Two random
    permutations break its ties.

    Args:
        used: q, 0 or 1 (T, U).
        prior: P, 0 or 1 (T, U).
        generator: Of the permutations; None breaks ties by number.

    Returns:
        int64 (U,) and a number from 0 to 1.
    """
    units = used.shape[1]
    cost = used.sum(0)[:, None] + prior.sum(0) - 2 * used.T @ prior
    table = cost.cpu().double().numpy()
    first = np.arange(units) if generator is None else torch.randperm(units, generator=generator).numpy()
    second = np.arange(units) if generator is None else torch.randperm(units, generator=generator).numpy()
    rows, columns = linear_sum_assignment(table[first][:, second])
    found = np.empty(units, dtype=np.int64)
    found[first[rows]] = second[columns]
    agreement = 1 - float(table[np.arange(units), found].sum()) / used.numel()
    return torch.as_tensor(found, device=used.device), agreement


def divergence(probs: Tensor, targets: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of rows of sum 1, (B, U) each, its mean over rows; 0 to ln 2."""
    log_middle = ((probs + targets) / 2 + EPSILON).log()
    first = probs * ((probs + EPSILON).log() - log_middle)
    second = targets * ((targets + EPSILON).log() - log_middle)
    return 0.5 * (first + second).sum(1).mean()


def prior_loss(probs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of gates against their matched prior.

    Args:
        probs: Gate probabilities of all blocks (B, L, E), float32.
        targets: The matched rows of the prior (B, L E).
    """
    own = probs.flatten(1) / probs.shape[1]
    return divergence(own, targets / targets.sum(1, keepdim=True))
