"""The policy: poses of a joint plan as waypoints, followed until the next plan (section 3.5)."""

from collections.abc import Sequence
from typing import Any

import torch
from noiseworks.kits.policies.protocols import Generators, Obs
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.pad.model import PAD
from noiseworks.pad.options import Following, Sampling
from torch import Tensor


class PosePlanner:
    """Velocities that lead to a pose; what is no position passes through.

    Each axis moves at its greatest speed until what is left fits into one step, so an arrived robot rests and the
    reference's division by a distance of zero does not occur.

    Args:
        following: Reach of a step, and which entries are a position.
    """

    def __init__(self, following: Following | None = None) -> None:
        self.following = following or Following()

    def act(self, pose: Tensor, target: Tensor) -> Tensor:
        """Return commands [B, D] at poses [B, D] towards targets [B, D]."""
        reach, position = self.following.reach, self.following.position
        velocity = ((target - pose)[:, :position] / reach).clamp(-1, 1)
        return torch.cat((velocity, target[:, position:]), dim=1)


class PADPolicy(ReplanningPolicy):
    """Plans jointly, then follows the plan's poses for `n_action_steps` steps.

    Observations are `image` [B, C, S, S] (uint8, or float in [-1, 1]), `pose` [B, D], `goal` [B, G] and, of models with
    depth, `depth` [B, 1, S, S]; further entries are left out.

    Args:
        model: The trained model.
        sampling: How plans are denoised.
        planner: Turns waypoints into commands.
        num_envs: Environments that it acts in.
        n_action_steps: Steps between two plans; the model's own number by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
    """

    def __init__(
        self,
        model: PAD,
        *,
        sampling: Sampling | None = None,
        planner: PosePlanner | None = None,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, num_envs=num_envs, n_action_steps=n_action_steps, seed=seed)
        self.sampling, self.planner = sampling or Sampling(), planner or PosePlanner()

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return waypoints of every step [rows, Tp, D], normalised, and the number of network calls."""
        window = self.host.window
        poses = self.host.predict(*cond, self.sampling, generator).poses
        if not window.dense:  # a frame's pose is the aim of all steps up to it
            poses = poses.repeat_interleave(window.stride, dim=1)
        return self.host.normalizer.normalize(poses), self.sampling.steps

    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Return the next commands [B, D] towards the plans' poses."""
        target = super().act(obs, ids)
        return self.planner.act(obs["pose"].to(target), target)
