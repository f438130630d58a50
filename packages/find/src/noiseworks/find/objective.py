"""The loss of the noise's distribution."""

from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice
from noiseworks.find.options import Surrogate
from torch import Tensor


class Weights(NamedTuple):
    """What the loss weighs.

    Attributes:
        clip: c.
        reward: w_r.
        penalty: w_k.
    """

    clip: float = 0.2
    reward: float = 10.0
    penalty: float = 0.01


def find_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    penalty: Tensor,
    weights: Weights = Weights(),
    surrogate: Surrogate = "hard",
) -> Tensor:
    """Return `-w_r mean(A clamp(rho, 1 - c, 1 + c)) + w_k penalty`.

    The clamp is hard: outside of it a sample gives no gradient, in either direction. `ppo` takes
    `min(A rho, A clamp(rho))` instead, with which a sample that went too far the wrong way still counts.

    Args:
        log_ratio: ln rho of each noise, under the policy and the reference [n].
        advantages: A [n].
        penalty: Distance from standard normal noise, a scalar.
        weights: c, w_r and w_k.
        surrogate: Which.

    Raises:
        InputError: When the surrogate is unknown.
    """
    check_choice("surrogate", surrogate, ("hard", "ppo"))
    ratio = log_ratio.exp()
    gain = advantages * ratio.clamp(1 - weights.clip, 1 + weights.clip)
    if surrogate == "ppo":
        gain = torch.minimum(advantages * ratio, gain)
    return -weights.reward * gain.mean() + weights.penalty * penalty


def centred_ranks(rewards: Tensor) -> Tensor:
    """Return the order of rewards as numbers from -1 to 1, equal ones with their mean rank [n]; one alone is 0."""
    below = (rewards[None] < rewards[:, None]).sum(1)
    above = (rewards[None] > rewards[:, None]).sum(1)
    return (below - above).to(rewards.dtype) / max(1, len(rewards) - 1)
