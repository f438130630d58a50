"""The objective: which of two images is preferred, and the losses of given pairs and of pictures of a subject.

Online, a step's loss is `step_ratio_loss` of the kit, `-logsigmoid(beta (h_0 q_0 + h_1 q_1))` with
`q = clamp(d, ln(1 - eps), ln(1 + eps))` and d the log-ratio of policy and untuned model.
"""

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice
from noiseworks.kits.image_tuning.options import Link
from noiseworks.kits.image_tuning.preferences import dominance, preference_link
from noiseworks.pso.options import Rule
from torch import Tensor


def pair_labels(
    rewards: Tensor, rule: Rule = "dominance", generator: torch.Generator | None = None
) -> Tensor:
    """Return which of two images is preferred; ties are (0, 0) under both rules.

    Args:
        rewards: [B, 2, m].
        rule: `dominance`, at least as good in all and better in one; `random`, by one number drawn for each pair.
        generator: Of that draw.

    Returns:
        h, float32 [B, 2]: (1, -1), (-1, 1) or (0, 0).

    Raises:
        InputError: When the rule is unknown.
    """
    check_choice("rule", rule, ("dominance", "random"))
    if rule == "random":
        drawn = torch.randint(rewards.shape[2], (len(rewards), 1, 1), generator=generator)
        rewards = rewards.gather(2, drawn.expand(-1, 2, 1))
    return dominance(rewards)


def margins(errors: Tensor, reference_errors: Tensor, gamma: float) -> Tensor:
    """Return `z = -{[e(w) - gamma e(l)] - [e_ref(w) - gamma e_ref(l)]}`, positive where the target gained [B].

    Args:
        errors: Mean squared errors of the noise prediction for target and reference image [B, 2].
        reference_errors: Those of the untuned model.
        gamma: Weight of the reference image.
    """
    gain = errors - reference_errors
    return gamma * gain[:, 1] - gain[:, 0]


def offline_loss(
    errors: Tensor,
    reference_errors: Tensor,
    *,
    kappa: float,
    gamma: float = 1.0,
    anchor: float = 0.0,
    link: Link = "sigmoid",
) -> Tensor:
    """Return `link(kappa z) + lambda e(l)` of pairs that share timestep and noise [B].

    With gamma 1 and lambda 0 it is Diffusion-DPO's loss, at whatever timesteps the errors are of.

    Args:
        errors: See `margins`.
        reference_errors: See `margins`.
        kappa: Strength, beta of the paper.
        gamma: See `margins`.
        anchor: lambda.
        link: Loss of a margin.
    """
    return preference_link(margins(errors, reference_errors, gamma), kappa, link) + anchor * errors[:, 1]


def personal_loss(errors: Tensor, *, strength: float, down_weight: float, hold: float) -> Tensor:
    """Return `relu(1 + beta (e(w) - gamma e(l))) + lambda e(l)` of pictures and images of their class [B].

    While the hinge is active it equals `1 + beta e(w) + (lambda - beta gamma) e(l)`: at lambda = beta gamma, the
    released values, class images have no effect and no gradient, and it is fine-tuning on the pictures alone.

    Args:
        errors: Mean squared errors of the noise prediction for picture and class image [B, 2].
        strength: beta.
        down_weight: gamma.
        hold: lambda.
    """
    wanted, other = errors.unbind(1)
    return F.relu(1 + strength * (wanted - down_weight * other)) + hold * other
