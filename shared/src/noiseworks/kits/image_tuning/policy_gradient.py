"""The algebra of policy gradients on chains: the clipped surrogate, and advantages per prompt."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from torch import Tensor


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    clip: float,
    advantage_clip: float | None = 5.0,
) -> Tensor:
    """Return `max(-A rho, -A clamp(rho, 1 - c, 1 + c))` with `rho = exp(logp - logp_old)` (PPO) [B].

    Args:
        log_prob: Under the policy [B].
        old_log_prob: Under the policy that drew [B].
        advantages: A [B].
        clip: c, above 0.
        advantage_clip: A is clamped to this size; None leaves it.

    Raises:
        InputError: When clip is not above 0.
    """
    check_number("clip", clip, low=0, low_open=True)
    if advantage_clip is not None:
        advantages = advantages.clamp(-advantage_clip, advantage_clip)
    ratio = (log_prob - old_log_prob).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


class PromptStatistics:
    """Mean and spread of each prompt's recent rewards, by which advantages are normalised.

    Args:
        buffer_size: Rewards that are remembered of a prompt.
        min_count: With fewer than these, the batch's own mean and spread are taken.

    Raises:
        InputError: When a number is below 1.
    """

    def __init__(self, buffer_size: int = 32, min_count: int = 16) -> None:
        check_number("buffer_size", buffer_size, low=1, integer=True)
        check_number("min_count", min_count, low=1, integer=True)
        self.buffer_size, self.min_count = buffer_size, min_count
        self._kept: dict[str, deque[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Remember rewards and return their advantages `(r - mean) / (std + 1e-6)`, std of the population [B].

        Args:
            prompts: One a reward; blanks around do not count.
            rewards: [B].

        Raises:
            InputError: When the numbers of prompts and rewards differ.
        """
        if len(prompts) != len(rewards):
            raise InputError(f"{len(prompts)} prompts and {len(rewards)} rewards: give one reward a prompt")
        names = [prompt.strip() for prompt in prompts]
        for name, reward in zip(names, rewards.tolist(), strict=True):
            self._kept.setdefault(name, deque(maxlen=self.buffer_size)).append(reward)
        batch = rewards.double()
        advantages = torch.empty_like(batch)
        for index, name in enumerate(names):
            own = torch.tensor(list(self._kept[name]), dtype=torch.float64)
            own = own if len(own) >= self.min_count else batch
            advantages[index] = (batch[index] - own.mean()) / (own.std(correction=0) + 1e-6)
        return advantages.to(rewards.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {name: list(kept) for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._kept = {name: deque(kept, maxlen=self.buffer_size) for name, kept in state.items()}
