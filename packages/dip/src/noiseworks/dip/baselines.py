"""What the paper compares with, on the same model, goals, rewards and noise."""

from collections.abc import Sequence

import torch
from noiseworks.dip.agent import MotionAgent
from noiseworks.dip.network import MotionModel
from noiseworks.dip.options import Moving, Sampling
from noiseworks.dip.policy import ImplicitPolicy
from noiseworks.dip.rewards import CLUTTERED, RewardSet
from noiseworks.dip.sampling import DipSampler, Round, draw
from noiseworks.kits.motion.body import BodyModel
from torch import Tensor

PURE = 2  # gradient steps without diffusion, for each that DIP takes: 500 at 50 steps of 5


class PureSampler(DipSampler):
    """The implicit policy without diffusion: gradient steps on the motion itself, from Gaussian noise."""

    @torch.no_grad()
    def sample(self, round: Round, generators: Sequence[torch.Generator], progress: object = None) -> Tensor:
        """Return motions [B, F, 69]; the arguments are those of `DipSampler.sample`."""
        x = draw(round.poses, generators)
        return self.policy.optimise(
            x,
            0.0,
            lambda motion: motion,
            round.setting,
            steps=PURE * self.options.steps * self.options.policy_steps,
        )


def make_agent(
    model: MotionModel,
    body: BodyModel,
    options: Sampling = Sampling(),
    moving: Moving = Moving(),
    rewards: RewardSet | None = None,
) -> MotionAgent:
    """Return an agent that works in the way of the options.

    Args:
        model: With a control branch, except for the ways inpainting and pure.
        body: The body.
        options: Way, steps, inpainting.
        moving: History, blending, speeds.
        rewards: By default the paper's, and penetration for walks as well.
    """
    policy = ImplicitPolicy(rewards or RewardSet(CLUTTERED), body, options)
    kind = PureSampler if options.way == "pure" else DipSampler
    return MotionAgent(kind(model, policy, options), body, moving, inpaint_goals=options.way == "inpainting")
