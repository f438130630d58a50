"""Training online, by the order that a scorer gives, and from labels of stored rollouts."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError
from noiseworks.d3po.objective import d3po_step_loss, pair_preferences
from noiseworks.d3po.options import Preference
from noiseworks.kits.image_tuning.options import Rollout, Tuning
from noiseworks.kits.image_tuning.rewards import Reward
from noiseworks.kits.image_tuning.trajectories import Trajectories
from noiseworks.kits.image_tuning.tuner import Losses, Tuner
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class _Preferring(Tuner):
    """Goes through groups of K rollouts of a prompt, by which of them is preferred."""

    preference: Preference

    def learn(self, drawn: Trajectories, h: Tensor, reference: Tensor, groups: Tensor) -> dict[str, float]:
        """Go through the groups that hold a preference.

        Args:
            drawn: Rollouts, the K of a group in a row.
            h: Preferences of each group's pairs [G, pairs].
            reference: Log-probabilities of all steps under the pretrained model [N, T].
            groups: Which groups, int64.

        Returns:
            Figures of the optimiser steps, and the share of pairs without a preference.
        """
        K, settings, device = self.preference.copies, self.preference, self.policy.device
        ties = float((h[groups] == 0).float().mean())
        groups = groups[(h[groups] != 0).any(1)]
        if not len(groups):
            return {"ties": ties}

        def losses(rows: Tensor, places: Tensor) -> Losses:
            members = (rows[:, None] * K + torch.arange(K)).flatten()
            each = places.repeat_interleave(K)
            logp = self.log_prob(drawn, members, each).view(-1, K)
            kept = reference[members, each].to(device).view(-1, K)
            return d3po_step_loss(logp, kept, h[rows].to(device), settings.beta, settings.clamp_eps)

        found = self.optimise(losses, groups)
        if found["clamped"] > 0.8:
            warnings.warn(
                f"{found['clamped']:.0%} of the steps are outside the clamp and teach nothing; "
                "lower the learning rate or raise clamp_eps",
                stacklevel=2,
            )
        return found | {"ties": ties}


class D3PO(_Preferring):
    """The online procedure: K images of a prompt, ordered by a scorer of which nothing but the order is used.

    Args:
        pipe: The pipeline, which gets adapters.
        prompts: What is trained on.
        judge: Scores images, larger is better; several numbers an image prefer what is at least as good in all.
        options: The run.
        rollout: How the pipeline draws.
        preference: What is compared.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        judge: Reward,
        options: Tuning,
        rollout: Rollout,
        preference: Preference = Preference(),
    ) -> None:
        super().__init__(pipe, prompts, judge, options, rollout)
        self.preference = preference

    def round(self, step: int) -> Mapping[str, float]:
        """Draw the images of some prompts, order them, and go through all of their steps."""
        K, prompts = self.preference.copies, self.draw_prompts(self.options.batch_size)
        groups = torch.arange(len(prompts))
        starts = groups.repeat_interleave(K).tolist() if self.preference.shared_start else None
        drawn = self.roll_out(prompts.repeat_interleave(K), starts)
        h = pair_preferences(drawn.rewards.view(len(prompts), K, -1), self.preference.pairs)
        return self.learn(drawn, h, self.reference_log_probs(drawn), groups) | self.reward_figures(drawn)


class LabelledD3PO(_Preferring):
    """The procedure from labels: rollouts that were drawn and judged before; nothing new is drawn.

    The log-probabilities under the reference are computed once for all rollouts.

    Args:
        pipe: The pipeline that drew them.
        drawn: The rollouts, the K of a prompt in a row, as `sample` wrote them.
        labels: One number an image, larger is better [prompts, K].
        options: The run; `batch_size` prompts are gone through in a round.
        rollout: How the pipeline drew.
        preference: What is compared.

    Raises:
        InputError: When labels and rollouts differ in number, or no pair has a preference.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        drawn: Trajectories,
        labels: Tensor,
        options: Tuning,
        rollout: Rollout,
        preference: Preference = Preference(),
    ) -> None:
        super().__init__(pipe, drawn.prompts, None, options, rollout)
        if labels.shape != (len(drawn.prompts), preference.copies) or labels.numel() != len(drawn):
            raise InputError(
                f"labels of shape {tuple(labels.shape)} do not fit {len(drawn)} images of {len(drawn.prompts)} "
                f"prompts with {preference.copies} each"
            )
        self.preference, self.drawn = preference, drawn
        self.h = pair_preferences(labels[..., None], preference.pairs)
        if not bool((self.h != 0).any()):
            raise InputError("the labels prefer no image to another: nothing can be learned from them")
        self.reference = self.reference_log_probs(drawn)

    def round(self, step: int) -> Mapping[str, float]:
        """Go through all steps of some prompts' images."""
        return self.learn(self.drawn, self.h, self.reference, self.draw_prompts(self.options.batch_size))
