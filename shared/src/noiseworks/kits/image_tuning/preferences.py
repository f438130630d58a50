"""The algebra of preferences: labels, the step-ratio loss, Diffusion-DPO's denoising loss and its links."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.kits.image_tuning.options import Link
from torch import Tensor

BetaConvention = Literal["dpo", "diffusers"]


def dominance(rewards: Tensor) -> Tensor:
    """Return which of two is preferred: the one that is at least as good in all respects and better in one.

    Args:
        rewards: [B, 2, m].

    Returns:
        h, float32 [B, 2]: (1, -1), (-1, 1), or (0, 0) for equal or incomparable ones.
    """
    first, second = rewards[:, 0], rewards[:, 1]
    wins = (first >= second).all(1) & (first > second).any(1)
    loses = (second >= first).all(1) & (second > first).any(1)
    h = wins.float() - loses.float()
    return torch.stack([h, -h], 1)


def step_ratio_loss(log_ratio: Tensor, h: Tensor, beta: float, clamp_eps: float | None) -> Tensor:
    """Return `-logsigmoid(beta (h_0 q_0 + h_1 q_1))` with `q = clamp(d, ln(1 - eps), ln(1 + eps))`.

    It lies within `softplus(+-beta (ln(1 + eps) - ln(1 - eps)))`: with beta and eps 0.1 in [0.6832, 0.7032], so that a
    flat loss near ln 2 says nothing. Where d leaves the interval, that member gets no gradient.

    Args:
        log_ratio: d, log-probability under the policy minus that under the reference [B, 2].
        h: Preferences [B, 2].
        beta: Strength, above 0.
        clamp_eps: eps, in (0, 1); None does not clamp.

    Returns:
        One loss a pair [B].

    Raises:
        InputError: When a number is out of range.
    """
    check_number("beta", beta, low=0, low_open=True)
    if clamp_eps is not None:
        check_number("clamp_eps", clamp_eps, low=0, high=1, low_open=True, high_open=True)
        log_ratio = log_ratio.clamp(math.log1p(-clamp_eps), math.log1p(clamp_eps))
    return -F.logsigmoid(beta * (h * log_ratio).sum(1))


def kappa_of(beta: float, convention: BetaConvention = "diffusers") -> float:
    """Return kappa of `preference_link` for a published beta.

    Diffusion-DPO's own code halves its beta (5000), the example of diffusers does not (2500): the same number.

    Raises:
        InputError: When beta is not above 0 or the convention is unknown.
    """
    check_number("beta", beta, low=0, low_open=True)
    check_choice("convention", convention, ("dpo", "diffusers"))
    return 0.5 * beta if convention == "dpo" else beta


def denoising_delta(errors: Tensor, reference_errors: Tensor) -> Tensor:
    """Return `[err(w) - err_ref(w)] - [err(l) - err_ref(l)]` of pairs that share timestep and noise [B].

    Args:
        errors: Mean squared errors of the predictions for winner and loser [B, 2].
        reference_errors: Those of the reference [B, 2].
    """
    gain = errors - reference_errors
    return gain[:, 0] - gain[:, 1]


def preference_link(z: Tensor, kappa: float, link: Link = "sigmoid") -> Tensor:
    """Return the loss of margins z = -delta: `sigmoid` -logsigmoid(k z), `hinge` relu(1 - k z), `ipo` (z - 1/2k)^2.

    Args:
        z: Margins [B], positive where the winner is preferred.
        kappa: Strength, above 0.
        link: Which.

    Raises:
        InputError: When kappa is not above 0 or the link is unknown.
    """
    check_number("kappa", kappa, low=0, low_open=True)
    check_choice("link", link, ("sigmoid", "hinge", "ipo"))
    if link == "hinge":
        return F.relu(1 - kappa * z)
    if link == "ipo":
        return (z - 1 / (2 * kappa)) ** 2
    return -F.logsigmoid(kappa * z)


def implicit_accuracy(z: Tensor) -> Tensor:
    """Return for each margin 1 where it is positive, 1/2 where it is 0, else 0 [B]."""
    return 0.5 * (1 + z.detach().sign())
