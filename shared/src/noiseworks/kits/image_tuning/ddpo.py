"""DDPO (Black et al. 2024, arXiv 2305.13301): PPO on the denoising steps. The common baseline, and an example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from noiseworks.core.options import Options, above, at_least
from noiseworks.kits.image_tuning.options import Rollout, Tuning
from noiseworks.kits.image_tuning.policy_gradient import PromptStatistics, clipped_surrogate
from noiseworks.kits.image_tuning.rewards import Reward
from noiseworks.kits.image_tuning.tuner import Losses, Tuner
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class DDPOSettings(Options):
    """DDPO's own settings, with the defaults of its authors' code.

    Attributes:
        copies: Samples of each prompt of a round.
        clip: c, how far the probability ratio of a step may go; small because it is that of a mean over elements.
        buffer_size: Rewards that are remembered of a prompt.
        min_count: With fewer of them, the round's own mean and spread normalise the advantage.
    """

    copies: Annotated[int, at_least(1)] = 1
    clip: Annotated[float, above(0)] = 1e-4
    buffer_size: Annotated[int, at_least(1)] = 32
    min_count: Annotated[int, at_least(1)] = 16


class DDPO(Tuner):
    """Trains on the policy's own rollouts by PPO, with advantages normalised per prompt.

    Args:
        pipe: The pipeline.
        prompts: What is trained on.
        reward: What finished images are worth.
        options: The run.
        rollout: How the policy draws.
        settings: DDPO's own.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        reward: Reward,
        options: Tuning,
        rollout: Rollout,
        settings: DDPOSettings = DDPOSettings(),
    ) -> None:
        super().__init__(pipe, prompts, reward, options, rollout)
        self.settings = settings
        self.statistics = PromptStatistics(settings.buffer_size, settings.min_count)

    def round(self, step: int) -> Mapping[str, float]:
        """Draw, score, normalise, and go through all steps of all rollouts."""
        ids = self.draw_prompts(self.options.batch_size).repeat_interleave(self.settings.copies)
        drawn = self.roll_out(ids)
        advantages = self.statistics.update(drawn.texts, drawn.rewards[:, 0])

        def losses(rows: Tensor, places: Tensor) -> Losses:
            old = drawn.log_probs[rows, places].to(self.policy.device)
            new = self.log_prob(drawn, rows, places)
            values = clipped_surrogate(new, old, advantages[rows].to(new), self.settings.clip)
            return Losses(values, {"clipped": ((new - old).exp() - 1).abs() > self.settings.clip})

        return self.optimise(losses, torch.arange(len(drawn))) | self.reward_figures(drawn)

    def method_state(self) -> dict[str, Any]:
        """Return the prompts' rewards."""
        return self.statistics.state_dict()

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.statistics.load_state_dict(state)
