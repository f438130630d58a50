"""Training: a stage draws trees, normalises and chooses branches, and goes through their trained steps."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.b2_diffurl.branches import HistoryNormalizer, explained_share, select_branches
from noiseworks.b2_diffurl.options import Branching, Stages
from noiseworks.kits.image_tuning.options import Rollout, Tuning
from noiseworks.kits.image_tuning.policy_gradient import clipped_surrogate
from noiseworks.kits.image_tuning.rewards import Reward
from noiseworks.kits.image_tuning.trajectories import Trajectories
from noiseworks.kits.image_tuning.tuner import Losses, Tuner
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

ADVANTAGE_CLIP = 5.0  # of the authors' code


class B2DiffuRL(Tuner):
    """Tunes a pipeline by a sparse reward, stage by stage.

    Args:
        pipe: The pipeline, which gets adapters.
        prompts: What is trained on.
        reward: What finished images are worth.
        options: The run; its rounds are the stages.
        rollout: How the pipeline draws.
        stages: Which steps are trained when.
        branching: What is compared.

    Attributes:
        normalizer: Rewards of the last stages.

    Raises:
        InputError: When more steps are to be trained than the sampler has.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        reward: Reward,
        options: Tuning,
        rollout: Rollout,
        stages: Stages = Stages(),
        branching: Branching = Branching(),
    ) -> None:
        stages.fits(rollout.num_inference_steps)
        super().__init__(pipe, prompts, reward, options, rollout)
        stages.fits(self.policy.chain.stochastic)
        self.stages, self.branching = stages, branching
        self.normalizer = HistoryNormalizer(branching.history)

    def round(self, step: int) -> Mapping[str, float]:
        """Do a stage: draw trees, score, normalise, choose, and go through the trained steps of what was chosen."""
        settings, places = self.branching, self.trained_places(step)
        drawn = self.draw(self.draw_prompts(self.options.batch_size), places)
        rewards = drawn.rewards[:, 0]
        z = self.normalizer.update(drawn.texts, rewards).view(-1, settings.branches)
        rows, chosen = select_branches(z, settings.positive, settings.negative)
        figures = self.reward_figures(drawn) | {
            "trained_steps": float(len(places)),
            "selected": len(rows) / len(drawn),
            "explained": explained_share(rewards.view_as(z)),
        }
        if not len(rows):
            warnings.warn(
                f"stage {step}: no branch was chosen; the rewards of each group are too much alike",
                stacklevel=2,
            )
            return figures
        advantages = torch.zeros(len(drawn))
        advantages[rows] = self.weighted(chosen).float()

        def losses(some: Tensor, at: Tensor) -> Losses:
            new = self.log_prob(drawn, some, at)
            old = drawn.log_probs[some, at].to(new)
            values = clipped_surrogate(new, old, advantages[some].to(new), settings.clip, None)
            return Losses(values, {"clipped": ((new - old).exp() - 1).abs() > settings.clip})

        found = self.optimise(losses, rows, places)
        if found["clipped"] > 0.5:
            warnings.warn(
                f"stage {step}: {found['clipped']:.0%} of the ratios are clipped; lower the learning rate",
                stacklevel=2,
            )
        return figures | found

    def trained_places(self, step: int) -> Tensor:
        """Return the places of the steps that a stage trains, int64."""
        interval = self.stages.interval(step, self.options.max_steps, self.policy.chain.stochastic)
        return torch.tensor(list(interval))

    def draw(self, prompts: Tensor, places: Tensor) -> Trajectories:
        """Return scored rollouts, the branches of a group in a row; they part where the trained steps begin.

        Args:
            prompts: One a group, int64 [G].
            places: The trained steps.
        """
        if self.branching.branching:
            return self.branch_out(prompts, self.branching.branches, int(places[0]))
        return self.roll_out(prompts.repeat_interleave(self.branching.branches))

    def weighted(self, advantages: Tensor) -> Tensor:
        """Return advantages, clipped and weighted by their sign [n]."""
        good, bad = self.branching.positive_weight, self.branching.negative_weight
        return advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP) * torch.where(advantages > 0, good, bad)

    def method_state(self) -> dict[str, Any]:
        """Return the rewards that are remembered."""
        return self.normalizer.state_dict()

    def load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.normalizer.load_state_dict(state)
