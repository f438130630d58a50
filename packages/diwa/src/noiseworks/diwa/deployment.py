"""Acting in the real environment (section 3.5): a filter keeps the latent state, the policy decides chunks on it."""

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.diwa.policy import ChainPolicy
from noiseworks.diwa.world_model import WorldModel
from noiseworks.kits.rl.stepping import VectorStep


class FilteredPolicy:
    """Reads every observation, and decides every C steps; `evaluate_returns(env, policy.act, ..., after=policy.after)`.

    Args:
        model: The world model.
        policy: A policy on its features.
        num_envs: Environments N that play single actions.
        seed: Of all draws.

    Raises:
        InputError: When the policy reads other features or gives other actions.
    """

    def __init__(self, model: WorldModel, policy: ChainPolicy, num_envs: int = 1, seed: int = 0) -> None:
        if (policy.features, policy.action_dim) != (model.sizes.features, model.action_dim):
            raise InputError(
                f"the policy reads features of {policy.features} and gives actions of {policy.action_dim}, the world "
                f"model has {model.sizes.features} and {model.action_dim}: name the model that it was fitted on"
            )
        self.model, self.policy, self.num_envs = model, policy, num_envs
        self.generator = torch.Generator().manual_seed(seed)
        self.state = model.begin(num_envs)
        self.action = torch.zeros(num_envs, model.action_dim)
        self.chunks = torch.zeros(num_envs, policy.chunk, model.action_dim)
        self.played = np.full(num_envs, policy.chunk)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return actions [N, Da] for observations [N, Do]."""
        if obs.shape != (self.num_envs, self.model.obs_dim):
            raise InputError(
                f"the world model reads observations ({self.num_envs}, {self.model.obs_dim}), got {obs.shape}"
            )
        rows = torch.as_tensor(obs, dtype=torch.float32)
        self.state = self.model.observe(self.state, self.action, rows, self.generator)[0]
        due = self.played >= self.policy.chunk
        if due.any():
            made = self.policy.act(self.state.feature, self.generator)
            self.chunks = torch.where(torch.as_tensor(due)[:, None, None], made, self.chunks)
            self.played[due] = 0
        self.action = self.chunks[torch.arange(self.num_envs), torch.as_tensor(self.played)]
        self.played += 1
        return self.action.numpy()

    def after(self, step: VectorStep) -> None:
        """Forget what ended."""
        over = torch.as_tensor(step.terminated | step.truncated)
        self.state = self.state.where(over, self.model.begin(self.num_envs))
        self.action = torch.where(over[:, None], torch.zeros_like(self.action), self.action)
        self.played[over.numpy()] = self.policy.chunk
