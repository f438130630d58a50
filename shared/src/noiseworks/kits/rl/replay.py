"""A ring of transitions on a device, and batches of which a part is recorded data."""

from collections.abc import Mapping
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.offline import Batch
from torch import Tensor


class ReplayBuffer:
    """The last so many transitions; stable-baselines3's buffer with rows on a device and a state that is saved.

    Args:
        capacity: Transitions that are kept.
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        device: Where they lie.
    """

    def __init__(
        self, capacity: int, obs_dim: int, action_dim: int, device: torch.device | str = "cpu"
    ) -> None:
        check_number("capacity", capacity, low=1, integer=True)
        shapes = ((obs_dim,), (action_dim,), (), (obs_dim,), ())
        self.rows = Batch(*(torch.zeros(capacity, *shape, device=device) for shape in shapes))
        self.capacity, self.added = capacity, 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Add transitions; the oldest make room.

        Raises:
            InputError: When there are more than fit, or widths differ.
        """
        count = len(batch.rewards)
        if count > self.capacity:
            raise InputError(f"{count} transitions do not fit into a buffer of {self.capacity}")
        where = torch.arange(self.added, self.added + count, device=self.rows.rewards.device) % self.capacity
        for own, new in zip(self.rows, batch, strict=True):
            if own.shape[1:] != new.shape[1:]:
                raise InputError(f"the buffer holds rows {tuple(own.shape[1:])}, got {tuple(new.shape[1:])}")
            own[where] = new.to(own)
        self.added += count

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Return transitions drawn with replacement.

        Raises:
            InputError: When the buffer is empty.
        """
        if not self.added:
            raise InputError("the buffer is empty: add transitions before sampling")
        return self.rows.rows(torch.randint(len(self), (count,), generator=generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the filled rows and the place of the next one."""
        return {"rows": [part[: len(self)].clone() for part in self.rows], "added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        for own, saved in zip(self.rows, state["rows"], strict=True):
            own[: len(saved)] = saved.to(own)
        self.added = state["added"]


def mixed(
    online: ReplayBuffer, recorded: Batch | None, count: int, share: float, generator: torch.Generator
) -> Batch:
    """Return a batch of which a share is recorded and the rest the agent's own, in random order (Ball et al. 2023).

    Args:
        online: The agent's transitions; while there are none, all rows are recorded.
        recorded: Recorded transitions, or None.
        count: Rows.
        share: Share of recorded rows.
        generator: Of the draws.
    """
    old = 0 if recorded is None else count if not len(online) else round(share * count)
    parts = [recorded.sample(old, generator)] if old else []
    parts += [online.sample(count - old, generator)] if count > old else []
    if len(parts) == 1:
        return parts[0]
    order: Tensor = torch.randperm(count, generator=generator)
    return Batch(*(torch.cat(pair)[order] for pair in zip(*parts, strict=True)))
