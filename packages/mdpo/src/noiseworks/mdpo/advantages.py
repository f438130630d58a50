"""Rewards of every denoising step to advantages (He et al. 2025, arXiv 2508.13148), and the choice of steps.

Shapes end in [..., G, T]: G rollouts of one prompt, T denoising steps; leading dimensions are prompts.
"""

from typing import get_args

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.mdpo.options import AdvantageKind
from torch import Tensor

STD_FLOOR = 1e-4
# Sums over rollouts that differ by rounding alone count as a tie.
TIE_DECIMALS = 9


def future_mean(rewards: Tensor) -> Tensor:
    """Return V_t, the mean of r_{t+1} ... r_{T−1}, and V_{T−1} = r_{T−1}; same shape as `rewards`."""
    steps = rewards.shape[-1]
    tail = rewards.flip(-1).cumsum(-1).flip(-1) - rewards
    count = torch.arange(steps - 1, -1, -1, device=rewards.device, dtype=rewards.dtype)
    return torch.where(count > 0, tail / count.clamp(min=1), rewards)


def step_returns(rewards: Tensor, kind: AdvantageKind = "diff+future") -> Tensor:
    """Return the raw return A_t of every step, before it is compared within the group.

    `diff+future` (MDPO): A_t = (r_t − r_{t−1}) + 1 + V_t with r_{−1} = 0. The others are ablations: `diff` is
    r_t − r_{t−1}, `future` the mean of r_t ... r_{T−1}, `step` r_t, and `final` r_{T−1} at every step.

    Args:
        rewards: r_t of the decoded full prediction at each step, [..., G, T].
        kind: Which return.

    Returns:
        float64, same shape.

    Raises:
        InputError: On an unknown kind.
    """
    check_choice("advantage", kind, get_args(AdvantageKind))
    r = rewards.double()
    if kind == "final":
        return r[..., -1:].expand_as(r).clone()
    if kind == "step":
        return r
    if kind == "future":
        count = torch.arange(r.shape[-1], 0, -1, device=r.device)
        return r.flip(-1).cumsum(-1).flip(-1) / count
    difference = torch.diff(r, dim=-1, prepend=torch.zeros_like(r[..., :1]))
    return difference if kind == "diff" else difference + 1 + future_mean(r)


def normalize_group(returns: Tensor) -> Tensor:
    """Return (A − mean_G) / (std_G + 1e−4) at every step, with the unbiased std over the G rollouts.

    Args:
        returns: A, [..., G, T] with G of at least 2.
    """
    mean = returns.mean(dim=-2, keepdim=True)
    return (returns - mean) / (returns.std(dim=-2, keepdim=True) + STD_FLOOR)


def compute_advantages(rewards: Tensor, kind: AdvantageKind = "diff+future") -> Tensor:
    """Return the group-relative advantage Â of every step and rollout.

    Args:
        rewards: Reward of the full prediction at every step, [..., G, T]; finite.
        kind: See `step_returns`.

    Returns:
        float64, same shape; all zero where the rollouts of a group were rewarded alike.

    Raises:
        InputError: With fewer than 2 rollouts, or rewards that are not finite.
    """
    if rewards.ndim < 2 or rewards.shape[-2] < 2:
        raise InputError(
            f"advantages compare at least 2 rollouts a prompt: need rewards [..., G, T] with G >= 2, "
            f"got shape {tuple(rewards.shape)}"
        )
    if not bool(rewards.isfinite().all()):
        raise InputError("rewards must be finite, got NaN or infinity; mend the reward functions")
    returns = step_returns(rewards, kind)
    # Where all returns agree, rounding in the mean must not become an advantage.
    alike = (returns.amax(-2, keepdim=True) - returns.amin(-2, keepdim=True)) < 1e-12
    return normalize_group(returns).masked_fill(alike, 0.0)


def select_steps(advantages: Tensor, k: int) -> Tensor:
    """Return the k steps with the largest Σ_g |Â_t^g|, in increasing order; ties go to the lower index.

    Args:
        advantages: Â, [..., G, T].
        k: Number of steps K, in [1, T].

    Returns:
        int64, [..., k]; the same steps for all rollouts of a group.

    Raises:
        InputError: When k is out of range.
    """
    check_number("sample_train_steps", k, low=1, high=advantages.shape[-1], integer=True)
    score = advantages.double().abs().sum(dim=-2).mul(10**TIE_DECIMALS).round()
    return score.argsort(dim=-1, descending=True, stable=True)[..., :k].sort(dim=-1).values
