"""The objective: the anchor-based adaptive flipper, and the loss that it enters.

Symbols: err(theta, x, t, n), the mean squared error of the model's prediction for x noised by n to level t; r the
opponent, an earlier checkpoint of the run, and x^r an image of its.
"""

from typing import get_args

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.kits.image_tuning.preferences import implicit_accuracy
from noiseworks.kits.image_tuning.tuner import Losses
from noiseworks.seppo.options import Flip, Objective, Tie
from torch import Tensor


def adaptive_flip(gain: Tensor, settings: Objective = Objective()) -> Tensor:
    """Return g of each sample: what the opponent's image counts as, judged by the winner as the anchor [n].

    With `gain` a = err(r, x^w) - err(theta, x^w): sign is 1 for a > 0 and -1 for a < 0, indicator 1 or 0, none
    always 1, soft tanh(a / softness). 1 makes x^r the loser, -1 a second winner, 0 leaves it out.

    Args:
        gain: a, how much better the tuned model explains the winner, without gradients [n].
        settings: Which flip, and what a tie is.

    Raises:
        InputError: When the flip or the tie is unknown, or the softness not above 0.
    """
    check_choice("flip", settings.flip, get_args(Flip))
    check_choice("tie", settings.tie, get_args(Tie))
    check_number("softness", settings.softness, low=0, low_open=True)
    if settings.flip == "none":
        return torch.ones_like(gain)
    if settings.flip == "soft":
        return torch.tanh(gain / settings.softness)
    g = gain.sign()
    if settings.tie == "worse":
        g = torch.where(gain == 0, torch.ones_like(g), g)
    return g if settings.flip == "sign" else g.clamp(min=0)


def seppo_loss(errors: Tensor, reference_errors: Tensor, g: Tensor, kappa: float) -> Losses:
    """Return `-logsigmoid(-kappa (W - g R))`, W and R what the model's errors of x^w and x^r are above the opponent's.

    With g = 1 it is the loss of SPIN-Diffusion, and with a human loser as x^r that of Diffusion-DPO.

    Args:
        errors: Errors of the tuned model for x^w and x^r [n, 2].
        reference_errors: Those of the opponent, under the same timesteps and noise [n, 2].
        g: From `adaptive_flip` [n].
        kappa: Strength, above 0.

    Returns:
        One loss a sample, with the share of preferences that the model has right, the share of flips, W and R.

    Raises:
        InputError: When kappa is not above 0.
    """
    check_number("kappa", kappa, low=0, low_open=True)
    above = errors - reference_errors
    W, R = above[:, 0], above[:, 1]
    z = -(W - g * R)
    figures = {
        "accuracy": implicit_accuracy(z),
        "flipped": (g < 0).to(z),
        "winner_error": W.detach(),
        "opponent_error": R.detach(),
    }
    return Losses(-F.logsigmoid(kappa * z), figures)
