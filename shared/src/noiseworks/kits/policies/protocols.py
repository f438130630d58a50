"""What a method needs of a policy and what a user runs, as structural types; no robot library is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Obs = Mapping[str, Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None


class ActionNormalizer(Protocol):
    """Maps actions between environment units and the network's."""

    def normalize(self, x: Tensor) -> Tensor:
        """Return actions [..., Da] in the network's units."""
        ...

    def unnormalize(self, x: Tensor) -> Tensor:
        """Return actions [..., Da] in environment units."""
        ...


class DenoiserHost(Protocol):
    """A trained policy's parts: network, observation encoder, scheduler, normaliser and time window.

    Not checkable with `isinstance`, which does not see the submodules of a torch module; `as_host` checks it. A host
    that knows what it reads has `observation_shapes` as well, the shape of a single observation by name: policies then
    refuse others from the first step on, else they hold an episode to its first observation's.

    Attributes:
        scheduler: A diffusers scheduler on the checkpoint's own schedule.
        normalizer: Of the actions.
        horizon: Actions of a prediction, Tp.
        n_obs_steps: Observations read, To.
        n_action_steps: Actions executed of a prediction, Ta.
        action_dim: Width of an action.
    """

    scheduler: Any
    normalizer: ActionNormalizer
    horizon: int
    n_obs_steps: int
    n_action_steps: int
    action_dim: int

    def encode(self, obs: Obs) -> Any:
        """Return the condition of observations whose tensors are [B, To, ...]; called once a replan."""
        ...

    def denoise(self, x: Tensor, k: Tensor, cond: Any) -> Tensor:
        """Return the network's output for noisy actions [B, T, Da] at diffusion steps k."""
        ...


@dataclass(frozen=True)
class Chunk:
    """What one replan gives.

    Attributes:
        actions: The part to execute, [B, Ta, Da] in environment units.
        prediction: The whole prediction, [B, Tp, Da] in normalised units.
        nfe: Network calls, each on the whole batch.
        latency_s: Seconds that the replan took.
    """

    actions: Tensor
    prediction: Tensor
    nfe: int
    latency_s: float


@runtime_checkable
class ActionPolicy(Protocol):
    """What runs in a control loop; row i of a batch is environment `ids[i]`."""

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forget the past of some environments (all by default); `seeds` fixes their noise."""
        ...

    def predict_chunk(self, obs: Obs, generator: Generators = None) -> Chunk:
        """Plan for observations [B, To, ...] without reading or changing any environment's past."""
        ...

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Return the next actions [B, Da] for single observations [B, ...]."""
        ...


class Step(Protocol):
    """What a batch of environments returns from a step; each entry is an array [N]."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class BatchEnv(Protocol):
    """N environments that step together, each with its own task and seed.

    Attributes:
        num_envs: N.
    """

    num_envs: int

    def reset(self, rows: np.ndarray, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Start episodes in some rows."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """Return the policy's observation of every environment, arrays [N, ...]."""
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Advance all environments by actions [N, Da]."""
        ...
