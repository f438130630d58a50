"""Policy guidance: how the actions of a noisy trajectory are pushed towards a policy (section 4).

The samples follow p_mu(τ) Π_t π(a_t | s_t)^λ: the data's law of motion stays, because only actions are pushed and the
next denoising steps fit states and rewards to them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from noiseworks.core.errors import InputError
from noiseworks.policy_guided_diffusion.options import Guidance
from noiseworks.policy_guided_diffusion.windows import Scaler
from torch import Tensor

# Observations [..., Do] and actions [..., Da] in the environment's units -> log densities [...].
LogProb = Callable[[Tensor, Tensor], Tensor]
NORM_EPS = 1e-8


@dataclass(frozen=True)
class Guide:
    """A target policy and how it guides the windows of one model.

    Attributes:
        log_prob: The policy's log density of actions.
        scaler: Of the model.
        guidance: Strength, time and place.
        coefficients: A coefficient for each window, [B], instead of the guidance's own.
    """

    log_prob: LogProb
    scaler: Scaler
    guidance: Guidance
    coefficients: Tensor | None = None

    def weights(self, steps: int) -> list[float]:
        """Return the weights λ_i of the steps; for a coefficient of 1 where each window has its own."""
        unit = self.guidance if self.coefficients is None else replace(self.guidance, coefficient=1.0)
        return guidance_weights(unit, steps)

    def push(self, x: Tensor, point: Tensor, weight: float) -> Tensor:
        """Return windows x whose actions are moved by λ g, with the gradient g taken at `point`."""
        gradient = policy_gradient(point, self.scaler, self.log_prob, normalize=self.guidance.normalize)
        if self.coefficients is not None:
            gradient = gradient * self.coefficients.to(x)[:, None, None]
        x = x.clone()
        x[..., self.scaler.action_part] += weight * gradient
        return x


def guidance_weights(guidance: Guidance, steps: int) -> list[float]:
    """Return λ_i = c (1 - i / N + k sin(π (i + 1) / N)) of steps 0 to N - 1, 0 before the delay and in the last.

    Args:
        guidance: c, k and the delay.
        steps: N.
    """
    c, k = guidance.coefficient, guidance.cosine
    return [
        c * (1 - i / steps + k * math.sin(math.pi * (i + 1) / steps))
        if guidance.delay <= i < steps - 1
        else 0.0
        for i in range(steps)
    ]


def policy_gradient(point: Tensor, scaler: Scaler, log_prob: LogProb, *, normalize: bool) -> Tensor:
    """Return g = ∇_u Σ_t log π(tanh(std u + mean) | s_t) of the actions' channels, [B, H, Da].

    Observations are held constant, and no term for tanh's own density is added.

    Args:
        point: Windows [B, H, C] in the network's units; no gradient flows to where they come from.
        scaler: Of the model.
        log_prob: The policy's.
        normalize: Whether each trajectory's gradient is divided by its norm (plus 1e-8), so that a zero one stays zero.
    """
    obs = scaler.observations(point.detach())
    with torch.enable_grad():
        u = point[..., scaler.action_part].detach().requires_grad_()
        total = log_prob(obs, scaler.actions(u)).sum()
        if not total.requires_grad:
            raise InputError(
                "the policy's log density does not depend on the action: its actions cannot be guided"
            )
        (gradient,) = torch.autograd.grad(total, u)
    if normalize:
        gradient = gradient / (gradient.flatten(1).norm(dim=1)[:, None, None] + NORM_EPS)
    return gradient
