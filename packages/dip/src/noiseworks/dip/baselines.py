"""What the paper compares with, on the same model, goals, rewards and noise."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from noiseworks.dip.agent import MotionAgent
from noiseworks.dip.network import MotionModel
from noiseworks.dip.options import Moving, Sampling
from noiseworks.dip.policy import ImplicitPolicy
from noiseworks.dip.rewards import CLUTTERED, RewardSet
from noiseworks.dip.sampling import DipSampler, Round, draw
from noiseworks.kits.motion.body import BodyModel
from torch import Tensor

WAYS = ("inpainting", "control", "pure", "direct", "dip")
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
    way: str = "dip",
    options: Sampling = Sampling(),
    moving: Moving = Moving(),
    rewards: RewardSet | None = None,
) -> MotionAgent:
    """Return an agent that works in one of the ways.

    Args:
        model: With a control branch, except for inpainting and pure.
        body: The body.
        way: `inpainting`, diffusion with key poses and waypoints inpainted; `control`, the control branch alone;
            `pure`, the policy without diffusion; `direct`, guidance of the noisy motion itself; or `dip`.
        options: Of the sampling; each way switches off what it does not have.
        moving: History, blending, speeds.
        rewards: By default the paper's, and penetration for walks as well.
    """
    changes = {
        "inpainting": {"control": False, "policy_steps": 0},
        "control": {"policy_steps": 0},
        "pure": {"via": "direct"},
        "direct": {"via": "direct"},
        "dip": {"via": "inversion"},
    }[way]
    options = replace(options, **changes)
    policy = ImplicitPolicy(rewards or RewardSet(CLUTTERED), body, options)
    kind = PureSampler if way == "pure" else DipSampler
    return MotionAgent(kind(model, policy, options), body, moving, inpaint_goals=way == "inpainting")
