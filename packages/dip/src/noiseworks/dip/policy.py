"""The implicit policy: gradient steps on the noisy motion so that what the denoiser makes of it does better.

As in the inversion of a generator, the motion that is judged is the denoiser's output, and what is moved is its
input: the gradient runs through the denoiser, which keeps the result a motion that it knows. In the ways `direct` and
`pure` the noisy motion itself is judged and moved.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from noiseworks.dip.options import Sampling
from noiseworks.dip.rewards import RewardSet, Setting
from noiseworks.kits.motion.body import BodyModel
from torch import Tensor


@dataclass(frozen=True)
class ImplicitPolicy:
    """The policy.

    Attributes:
        rewards: What is wanted.
        body: Gives joints and markers of a motion.
        options: Steps, their length, inversion or direct.
    """

    rewards: RewardSet
    body: BodyModel
    options: Sampling

    def optimise(
        self,
        mu: Tensor,
        variance: float,
        denoise: Callable[[Tensor], Tensor],
        setting: Setting,
        *,
        steps: int | None = None,
    ) -> Tensor:
        """Return mu after gradient steps: mu - s max(variance, 0.01) gradient, s = 20 / (K + 1e-6).

        The goal's gradient has length 1 wherever it is not reached, so that steps have a fixed length: 0.2 m for one
        key frame in direct mode.

        Args:
            mu: Mean of the posterior, [B, F, 69].
            variance: Of the posterior.
            denoise: Noisy motion -> clean motion, at the timestep that mu belongs to.
            setting: What the round is about.
            steps: How many, by default the options'.

        Raises:
            InputError: When some motion has no goal.
            NonFiniteError: Naming a reward that is not finite.
        """
        options = self.options
        scale = (
            options.strength
            / (setting.goals.key_frames().to(mu) + 1e-6)
            * max(variance, options.min_variance)
        )
        for _ in range(options.gradient_steps if steps is None else steps):
            loss, slope = self.slope(mu, denoise, setting)
            moving = loss > options.tolerance
            if not bool(moving.any()):
                break
            mu = mu - (scale * moving)[:, None, None] * slope
        return mu

    def slope(
        self, mu: Tensor, denoise: Callable[[Tensor], Tensor], setting: Setting
    ) -> tuple[Tensor, Tensor]:
        """Return the loss [B] of what becomes of mu, and its gradient by mu [B, F, 69]; no other gradient is left."""
        with torch.enable_grad():
            x = mu.detach().requires_grad_(True)
            motion = denoise(x) if self.options.through_denoiser else x
            loss = self.rewards(*self.body(motion), setting)
            (slope,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), slope
