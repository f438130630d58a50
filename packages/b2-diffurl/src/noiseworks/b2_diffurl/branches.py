"""What branches teach: rewards normalised per prompt with its history, and the best and the worst of each group."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from torch import Tensor


class HistoryNormalizer:
    """Normalises each prompt's rewards by those of this stage and of the prompt's last stages.

    Args:
        window_stages: Earlier stages of a prompt that count.
        eps: Added to the spread.

    Raises:
        InputError: When the number of stages is negative.
    """

    def __init__(self, window_stages: int = 8, eps: float = 1e-8) -> None:
        check_number("window_stages", window_stages, low=0, integer=True)
        self.window_stages, self.eps = window_stages, eps
        self._kept: dict[str, deque[list[float]]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Return `(R - mean) / (std + eps)`, std with the n - 1 divisor, and remember the stage [N].

        Where all of a prompt's rewards are equal there is nothing to compare, and z is 0.

        Args:
            prompts: One a reward; blanks around do not count.
            rewards: All of this stage [N].

        Raises:
            InputError: When the numbers of prompts and rewards differ.
        """
        if len(prompts) != len(rewards):
            raise InputError(f"{len(prompts)} prompts and {len(rewards)} rewards: give one prompt a reward")
        names, values = [prompt.strip() for prompt in prompts], rewards.double()
        z = torch.zeros_like(values)
        for name in dict.fromkeys(names):
            own = torch.tensor([other == name for other in names])
            earlier = self._kept.setdefault(name, deque(maxlen=self.window_stages))
            known = torch.cat(
                [values[own], torch.tensor([r for stage in earlier for r in stage], dtype=torch.float64)]
            )
            if len(known) > 1 and float(known.max()) > float(known.min()):
                z[own] = (values[own] - known.mean()) / (known.std() + self.eps)
            earlier.append(values[own].tolist())
        return z

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {name: list(kept) for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._kept = {name: deque(kept, maxlen=self.window_stages) for name, kept in state.items()}


def select_branches(z: Tensor, positive: float = 0.5, negative: float = -0.5) -> tuple[Tensor, Tensor]:
    """Return which branches teach: of each group the best one if z >= positive, the worst one if z < negative.

    Args:
        z: Normalised rewards [G, K].
        positive: Threshold of good branches.
        negative: Threshold of bad branches.

    Returns:
        Rows of the flattened groups, int64 [n], good ones first, and their advantages z [n].

    Raises:
        InputError: When a group has less than two branches.
    """
    if z.ndim != 2 or z.shape[1] < 2:
        raise InputError(f"z must be [groups, branches] with two branches at least, got {tuple(z.shape)}")
    first = torch.arange(len(z)) * z.shape[1]
    (best, good), (worst, bad) = z.max(1), z.min(1)
    rows = torch.cat([(first + good)[best >= positive], (first + bad)[worst < negative]])
    return rows, z.flatten()[rows]


def explained_share(rewards: Tensor) -> float:
    """Return the share of the rewards' variance that lies between groups, which branches cannot change.

    Args:
        rewards: [G, K].
    """
    total = float(rewards.double().var(correction=0))
    return float(rewards.double().mean(1).var(correction=0)) / total if total > 0 else 0.0
