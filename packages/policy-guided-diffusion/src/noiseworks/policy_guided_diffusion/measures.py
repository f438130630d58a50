"""What synthetic trajectories are judged by: likelihood under the policy, and how well they keep the law of motion."""

from collections.abc import Callable

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.policy_guided_diffusion.guidance import LogProb
from noiseworks.policy_guided_diffusion.windows import Trajectories
from torch import Tensor

# Observations [N, Do] and actions [N, Da] -> next observations [N, Do].
Dynamics = Callable[[np.ndarray, np.ndarray], np.ndarray]


@torch.no_grad()
def log_likelihood(trajectories: Trajectories, log_prob: LogProb) -> Tensor:
    """Return each trajectory's mean log density of its actions under a policy, [B]."""
    return log_prob(trajectories.observations, trajectories.actions).mean(1)


def dynamics_error(trajectories: Trajectories, dynamics: Dynamics) -> Tensor:
    """Return each trajectory's mean distance of a next observation from where the true dynamics lead, [B].

    Raises:
        InputError: When trajectories have a single row.
    """
    seen = trajectories.observations.double().cpu().numpy()
    actions = trajectories.actions.double().cpu().numpy()
    if seen.shape[1] < 2:
        raise InputError("the law of motion needs trajectories of at least two rows")
    before = seen[:, :-1].reshape(-1, seen.shape[2])
    reached = dynamics(before, actions[:, :-1].reshape(-1, actions.shape[2])).reshape(seen[:, 1:].shape)
    return torch.from_numpy(np.linalg.norm(reached - seen[:, 1:], axis=-1).mean(1))
