"""The objective: which of a prompt's images is preferred, and the loss of one denoising step."""

import math

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.d3po.options import PairMode
from noiseworks.kits.image_tuning.preferences import dominance, step_ratio_loss
from noiseworks.kits.image_tuning.tuner import Losses
from torch import Tensor


def pairs_of(copies: int) -> Tensor:
    """Return the pairs (i, j), i < j, of K images, int64 [K (K - 1) / 2, 2]."""
    return torch.combinations(torch.arange(copies))


def pair_preferences(scores: Tensor, mode: PairMode = "all") -> Tensor:
    """Return which image of each pair is preferred.

    Args:
        scores: One or several numbers an image [N, K, m]; larger is better.
        mode: `all` pairs, the `best_worst` (the first of several that are equal), or those `adjacent` in order; the
            last two need one number an image.

    Returns:
        [N, K (K - 1) / 2] in the order of `pairs_of`: 1 for the first, -1 for the second image, 0 for a tie, for
        images that are better in different respects, and for pairs that are left out.

    Raises:
        InputError: When scores hold NaN, or the mode is unknown or does not fit them.
    """
    check_choice("mode", mode, ("all", "best_worst", "adjacent"))
    if not bool(scores.isfinite().all()):
        raise InputError("the scores hold NaN or infinity: give every image a number")
    copies, pairs = scores.shape[1], pairs_of(scores.shape[1])
    h = dominance(scores[:, pairs].flatten(0, 1))[:, 0].view(len(scores), len(pairs))
    if mode == "all":
        return h
    if scores.shape[2] != 1:
        raise InputError(f"mode {mode} needs one number an image, got {scores.shape[2]}; use all")
    ranks = scores[..., 0].argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    distance = (ranks[:, pairs[:, 0]] - ranks[:, pairs[:, 1]]).abs()
    return h * (distance == (copies - 1 if mode == "best_worst" else 1))


def d3po_step_loss(
    log_prob: Tensor, reference: Tensor, h: Tensor, beta: float, clamp_eps: float | None
) -> Losses:
    """Return the loss of one denoising step of prompts with K images each (eq. 10 of the paper, clamped as its code).

    For each pair with a preference `-logsigmoid(beta (h q_i - h q_j))`, q the clamped log-ratio of each image's step
    under policy and reference; a prompt's loss is the mean over its pairs.

    Args:
        log_prob: Of each image's step under the policy [n, K].
        reference: Under the pretrained model [n, K].
        h: Preferences of the pairs [n, K (K - 1) / 2]; every row has one at least.
        beta: Strength.
        clamp_eps: eps; None does not clamp.
    """
    d = log_prob - reference
    paired = d[:, pairs_of(d.shape[1]).to(d.device)]
    signs = torch.stack([h, -h], -1)
    values = step_ratio_loss(paired.flatten(0, 1), signs.flatten(0, 1), beta, clamp_eps).view_as(h)
    counted = (h != 0).to(values)
    share = counted / counted.sum(1, keepdim=True)
    agrees = 0.5 * (1 + (h * (paired[..., 0] - paired[..., 1]).detach()).sign())
    outside = torch.zeros_like(d) if clamp_eps is None else _outside(d, clamp_eps)
    figures = {
        "accuracy": (agrees * share).sum(1),
        "clamped": outside.mean(1),
        "log_ratio": d.detach().abs().mean(1),
    }
    return Losses((values * share).sum(1), figures)


def _outside(d: Tensor, eps: float) -> Tensor:
    return ((d.detach() < math.log1p(-eps)) | (d.detach() > math.log1p(eps))).to(d)


def loss_bounds(beta: float, clamp_eps: float | None) -> tuple[float, float]:
    """Return between which values the loss of a pair lies: close to ln 2 for small beta, however well it learns.

    With beta and eps 0.1 from 0.68316 to 0.70323. A flat loss so says nothing: watch reward and accuracy.
    """
    if clamp_eps is None:
        return 0.0, math.inf
    most = beta * (math.log1p(clamp_eps) - math.log1p(-clamp_eps))
    low, high = (-float(F.logsigmoid(torch.tensor(x, dtype=torch.float64))) for x in (most, -most))
    return low, high
