"""What SePPO is compared with, on the same winners at equally many updates: fine-tuning, SPIN, Diffusion-DPO."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.kits.image_tuning.offline import DiffusionDPO, OfflineTuner, Supervised
from noiseworks.kits.image_tuning.options import PairLoss, Rollout
from noiseworks.seppo.options import Objective, OpponentRule, Opponents, Training
from noiseworks.seppo.training import SePPO
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

METHODS = ("supervised", "dpo", "initial", "spin", "unflipped", "seppo")


@dataclass(frozen=True, eq=False)
class Examples:
    """Winners, and losers where there are.

    Attributes:
        prompts: Prompts, without repetition.
        latents: Winners [N, ...].
        ids: Each winner's prompt, int64 [N].
        losers: Images of the same prompts that are worse [N, ...]; only Diffusion-DPO looks at them.
    """

    prompts: Sequence[str]
    latents: Tensor
    ids: Tensor
    losers: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How all methods of a comparison are trained.

    Attributes:
        training: Length and optimiser.
        objective: SePPO's; its kappa is everybody's.
        opponents: SePPO's; the checkpoints come as often for SPIN.
        rollout: How opponents draw.
    """

    training: Training
    objective: Objective
    opponents: Opponents
    rollout: Rollout


def rival(name: str, pipe: "DiffusionPipeline", examples: Examples, plan: Plan) -> OfflineTuner:
    """Return the trainer of one method.

    Args:
        name: supervised (fine-tuning on the winners), dpo (Diffusion-DPO on pairs), initial (without flip, against the
            initial model, as DITTO), spin (without flip, against the latest checkpoint), unflipped (SePPO without
            flip) or seppo.
        pipe: A pipeline of its own.
        examples: The data.
        plan: The training.

    Raises:
        InputError: When the name is unknown, or pairs are asked for and there are no losers.
    """
    check_choice("method", name, METHODS)
    start = (pipe, examples.prompts)
    if name == "supervised":
        return Supervised(*start, examples.latents, examples.ids, plan.training, rollout=plan.rollout)
    if name == "dpo":
        if examples.losers is None:
            raise InputError("Diffusion-DPO needs a loser for every winner")
        pairs = torch.stack([examples.latents, examples.losers], 1)
        return DiffusionDPO(*start, pairs, examples.ids, plan.training, PairLoss(kappa=plan.objective.kappa))
    rules: dict[str, OpponentRule] = {"initial": "initial", "spin": "latest"}
    objective = plan.objective if name == "seppo" else replace(plan.objective, flip="none")
    opponents = replace(plan.opponents, opponents=rules.get(name, plan.opponents.opponents))
    parts = (plan.training, objective, opponents, plan.rollout)
    return SePPO(*start, examples.latents, examples.ids, *parts)
