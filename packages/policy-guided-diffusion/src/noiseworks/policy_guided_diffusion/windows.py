"""Windows of trajectories as one array, and their scale (section 4; appendix on data).

A row holds observation, action, reward and done side by side. Actions become atanh(a) before every channel is
standardised with its own mean and deviation over all windows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.transitions import Transitions
from torch import Tensor, nn

ACTION_LIMIT = 0.999  # atanh(±1) is infinite
ACTION_SLACK = 1e-3  # actions may exceed [-1, 1] by so much, as rounding does
DONE_THRESHOLD = 0.5


@dataclass(frozen=True)
class Trajectories:
    """Windows in the environment's units.

    Attributes:
        observations: float32 [B, H, Do].
        actions: float32 [B, H, Da] in [-1, 1].
        rewards: float32 [B, H].
        dones: bool [B, H], the task ended with this step.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    dones: Tensor

    def __len__(self) -> int:
        return len(self.rewards)

    def transitions(self) -> Transitions:
        """Return H - 1 transitions of each window; the next row gives a step's next observation."""
        parts = (
            self.observations[:, :-1],
            self.actions[:, :-1],
            self.rewards[:, :-1],
            self.observations[:, 1:],
        )
        dones = self.dones[:, :-1].cpu().numpy()
        cut = np.zeros_like(dones)
        cut[:, -1] = ~dones[:, -1]
        arrays = [part.flatten(0, 1).cpu().numpy() for part in parts]
        return Transitions(*arrays, dones.reshape(-1), cut.reshape(-1), {"synthetic": True})


class Scaler(nn.Module):
    """Maps rows between the environment's units and the network's.

    Args:
        obs_dim: Width of an observation, Do.
        action_dim: Width of an action, Da.

    Attributes:
        mean: Of each channel, [C] with C = Do + Da + 2.
        std: Of each channel, [C]; 1 where the channel never changes.
    """

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.channels = obs_dim + action_dim + 2
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("std", torch.ones(self.channels))

    @property
    def action_part(self) -> slice:
        """Where the actions stand in a row."""
        return slice(self.obs_dim, self.obs_dim + self.action_dim)

    def fit(self, rows: Tensor) -> None:
        """Take mean and population deviation of rows [..., C] with unbounded actions."""
        flat = rows.reshape(-1, self.channels).double()
        std = flat.std(0, correction=0)
        self.mean.copy_(flat.mean(0))
        self.std.copy_(torch.where(std == 0, torch.ones_like(std), std))

    def encode(self, rows: Tensor) -> Tensor:
        """Return rows [..., C] with unbounded actions in the network's units."""
        return (rows - self.mean) / self.std

    def observations(self, x: Tensor) -> Tensor:
        """Return the observations [..., Do] of rows [..., C] in the network's units."""
        return x[..., : self.obs_dim] * self.std[: self.obs_dim] + self.mean[: self.obs_dim]

    def actions(self, u: Tensor) -> Tensor:
        """Return the actions tanh(std u + mean) of their channels [..., Da] in the network's units."""
        return torch.tanh(u * self.std[self.action_part] + self.mean[self.action_part])

    def decode(self, x: Tensor) -> Trajectories:
        """Return windows [B, H, C] in the network's units as trajectories."""
        tail = x[..., -2:] * self.std[-2:] + self.mean[-2:]
        return Trajectories(
            self.observations(x),
            self.actions(x[..., self.action_part]),
            tail[..., 0],
            tail[..., 1] > DONE_THRESHOLD,
        )


def rows_of(transitions: Transitions) -> Tensor:
    """Return the rows [N, C] of recorded steps, actions as atanh(clip(a, -0.999, 0.999)).

    Raises:
        InputError: When an action lies outside of [-1, 1].
    """
    actions = transitions.actions
    if (largest := float(np.abs(actions).max())) > 1 + ACTION_SLACK:
        raise InputError(
            f"actions must lie in [-1, 1], the data hold {largest:g}: divide them by their bounds first"
        )
    unbounded = np.arctanh(np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT))
    columns = (
        transitions.observations,
        unbounded,
        transitions.rewards[:, None],
        transitions.terminals[:, None],
    )
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.float32))


def split(transitions: Transitions, held_out: float, seed: int) -> tuple[Transitions, Transitions | None]:
    """Return the episodes to learn and a share of held-out ones, None where that is less than one."""
    episodes = len(transitions.ends)
    order, count = np.random.default_rng(seed).permutation(episodes), int(held_out * episodes)
    if count == 0:
        return transitions, None
    return transitions.episodes(np.sort(order[count:])), transitions.episodes(np.sort(order[:count]))


def windows_of(transitions: Transitions, horizon: int, stride: int) -> Tensor:
    """Return the windows to learn, [W, H, C] in the environment's units with unbounded actions.

    Of the windows that lie inside an episode: each `stride`-th, all that begin an episode, all that end in a terminal,
    none that ends in a timeout. So only a window's last row can be done.

    Raises:
        InputError: When no window remains or actions lie outside of [-1, 1].
    """
    starts = torch.from_numpy(transitions.windows(horizon, stride, "anchored"))
    return rows_of(transitions)[starts[:, None] + torch.arange(horizon)]
