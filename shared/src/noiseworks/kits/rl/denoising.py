"""Policy gradients through denoising (DPPO, Ren et al. 2024): every denoising step is a decision.

A chain of K' + 1 samples [B, K' + 1, C, Da] runs from the first one that is tuned to the clean actions; its K' steps
are normal with the mean of the schedule and a deviation not below a floor. Position j = 0 is the noisiest step.
"""

import math
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.networks import normal_log_prob
from torch import Tensor

STD_FLOOR, NOISE_CLAMP, LOG_PROB_RANGE = 0.1, 3.0, (-5.0, 2.0)
RETURN_CLIP = 10.0


def chain_step(mean: Tensor, std: Tensor | float, noise: Tensor, floor: float = STD_FLOOR) -> Tensor:
    """Return the next sample, mean + max(std, floor) clamp(noise, -3, 3)."""
    deviation = torch.as_tensor(std, dtype=mean.dtype, device=mean.device).clamp(min=floor)
    return mean + deviation * noise.clamp(-NOISE_CLAMP, NOISE_CLAMP)


def chain_log_prob(chain: Tensor, means: Tensor, stds: Tensor, floor: float = STD_FLOOR) -> Tensor:
    """Return the log probability of each step of chains, averaged over actions and dimensions, [B, K'].

    Elements are clamped to [-5, 2], as released, so that one of them cannot decide.

    Args:
        chain: Samples [B, K' + 1, C, Da].
        means: The policy's mean of each step, [B, K', C, Da].
        stds: The schedule's deviations, [K'].
        floor: Smallest deviation.

    Raises:
        InputError: When the shapes do not fit.
    """
    steps = chain.shape[1] - 1
    if means.shape[1] != steps or stds.shape != (steps,):
        raise InputError(
            f"a chain of {steps} steps needs as many means and deviations, got {means.shape[1]}, {len(stds)}"
        )
    return step_log_prob(chain[:, 1:], means, stds[None, :, None, None], floor)


def step_log_prob(sample: Tensor, mean: Tensor, std: Tensor, floor: float = STD_FLOOR) -> Tensor:
    """Return the log probability of single steps to samples [..., C, Da], averaged over actions and dimensions, [...].

    Args:
        sample: What each step led to.
        mean: The policy's mean.
        std: The schedule's deviation, broadcast to the sample.
        floor: Smallest deviation.
    """
    return normal_log_prob(sample, mean, std.clamp(min=floor).log()).clamp(*LOG_PROB_RANGE).mean((-2, -1))


def denoising_discounts(steps: int, gamma: float = 0.99) -> Tensor:
    """Return γ_d^(K' - 1 - j), by which a step's advantage is multiplied: less for the noisier ones, float64 [K']."""
    check_number("steps", steps, low=1, integer=True)
    return gamma ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)


def clip_widths(steps: int, narrow: float = 0.001, wide: float = 0.01) -> Tensor:
    """Return the clip widths ε_j = narrow + (wide - narrow) (e^(3 j / (K' - 1)) - 1) / (e^3 - 1), float64 [K'].

    The parents' formula divides by zero for a single step, which here has the width of a last one.
    """
    check_number("steps", steps, low=1, integer=True)
    if steps == 1:
        return torch.tensor([wide], dtype=torch.float64)
    share = torch.expm1(3 * torch.arange(steps, dtype=torch.float64) / (steps - 1)) / math.expm1(3)
    return narrow + (wide - narrow) * share


class PolicyLoss(NamedTuple):
    """The clipped loss and what tells how far the policy has moved.

    Attributes:
        loss: The loss, a scalar.
        kl: Estimate of the KL divergence from the old policy, mean (r - 1) - ln r.
        clipped: Share of the steps whose ratio lies outside of its width.
    """

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def denoising_ppo_loss(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    gamma: float = 0.99,
    *,
    positions: Tensor | None = None,
    steps: int | None = None,
) -> PolicyLoss:
    """Return PPO's clipped loss over all steps of chains, or over single ones.

    Args:
        new: Log probabilities of the steps under the policy, [B, K'], or of single ones, [B].
        old: Under the policy that drew the chains, alike.
        advantages: Of each step's decision, [B]; normalised here over the batch.
        gamma: Discount of denoising steps.
        positions: Place of each single step in its chain, int64 [B]; for whole chains None.
        steps: K', for single steps.
    """
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    count = new.shape[1] if positions is None else steps
    discounts, width = denoising_discounts(count, gamma).to(new), clip_widths(count).to(new)
    if positions is None:
        weighted = advantages[:, None] * discounts
    else:
        weighted, width = advantages * discounts[positions], width[positions]
    log_ratio = new - old
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * weighted, torch.clamp(ratio, 1 - width, 1 + width) * weighted)
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        clipped = ((ratio - 1).abs() > width).float().mean()
    return PolicyLoss(-gain.mean(), kl, clipped)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    discounts: tuple[float, float],
) -> Tensor:
    """Return generalised advantage estimates [T, N] (Schulman et al. 2016).

    A time limit is no end of the task: the value of what was truly reached counts, and the sum over later steps, which
    belong to another episode, is cut.

    Args:
        rewards: [T, N].
        values: Of what was seen, [T, N].
        next_values: Of what each action led to, the true last observation where an episode ended, [T, N].
        terminated: Whether the task ended, [T, N].
        ended: Whether the episode did, for either reason, [T, N].
        discounts: γ and λ.
    """
    gamma, lam = discounts
    deltas = rewards + gamma * next_values * (~terminated) - values
    out, carried = torch.empty_like(deltas), torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        carried = deltas[t] + gamma * lam * carried * (~ended[t])
        out[t] = carried
    return out


class ReturnScale:
    """Divides rewards by the running deviation of the discounted return, and clips them to ±10.

    Args:
        num_envs: Environments N.
        gamma: Discount.
    """

    def __init__(self, num_envs: int, gamma: float = 0.99) -> None:
        check_number("num_envs", num_envs, low=1, integer=True)
        self.gamma = gamma
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def __call__(self, rewards: Tensor, ended: Tensor) -> Tensor:
        """Return the scaled rewards [N] of a step, which is counted."""
        self.returns = self.gamma * self.returns + rewards.double()
        for value in self.returns.tolist():  # Welford's update
            self.count += 1
            away = value - self.mean
            self.mean += away / self.count
            self.squares += away * (value - self.mean)
        self.returns = self.returns * (~ended)
        std = math.sqrt(self.squares / self.count + 1e-8)
        return (rewards / std).clamp(-RETURN_CLIP, RETURN_CLIP)

    def state_dict(self) -> dict[str, object]:
        """Return the running figures."""
        return {
            "returns": self.returns.clone(),
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from figures of `state_dict`."""
        self.returns = state["returns"].clone()
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
