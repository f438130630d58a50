"""The baseline that the paper compares with: a one-step model of the data, rolled out with the policy itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from noiseworks.kits.rl.networks import EnsembleLinear
from noiseworks.kits.rl.offline import Batch
from noiseworks.policy_guided_diffusion.windows import Trajectories
from torch import Tensor, nn


class OneStepModel(nn.Module):
    """An ensemble of networks that predict change of state and reward of a step.

    Args:
        real: Transitions whose statistics it takes.
        members: Networks; a rollout takes one of them at random in every step.
        hidden: Width of the two hidden layers.
    """

    def __init__(self, real: Batch, members: int = 4, hidden: int = 128) -> None:
        super().__init__()
        inputs = torch.cat((real.obs, real.actions), 1)
        outputs = torch.cat((real.next_obs - real.obs, real.rewards[:, None]), 1)
        for name, rows in (("inputs", inputs), ("outputs", outputs)):
            self.register_buffer(f"{name}_mean", rows.mean(0))
            self.register_buffer(f"{name}_std", rows.std(0).clamp(min=1e-6))
        widths = ((inputs.shape[1], hidden), (hidden, hidden), (hidden, outputs.shape[1]))
        self.layers = nn.ModuleList(EnsembleLinear(members, *pair) for pair in widths)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return every member's change of state and reward, [E, B, Do + 1], in standardised units."""
        x = (torch.cat((obs, action), 1) - self.inputs_mean) / self.inputs_std
        x = x.expand(len(self.layers[0].weight), -1, -1)
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.layers[-1](x)

    def fit(self, real: Batch, steps: int, seed: int, batch_size: int = 256) -> None:
        """Minimise the squared error of all members, each on the same batches."""
        check_number("steps", steps, low=1, integer=True)
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters(), 1e-3, fused=True)
        for _ in range(steps):
            batch = real.sample(batch_size, generator)
            change = torch.cat((batch.next_obs - batch.obs, batch.rewards[:, None]), 1)
            wanted = (change - self.outputs_mean) / self.outputs_std
            loss = (self(batch.obs, batch.actions) - wanted).square().mean((1, 2)).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def roll_out(
        self, obs: Tensor, act: Callable[[Tensor], Tensor], horizon: int, generator: torch.Generator
    ) -> Trajectories:
        """Return trajectories of a policy inside the model.

        Args:
            obs: Where they begin, [B, Do].
            act: Observations [B, Do] -> actions [B, Da].
            horizon: Steps H.
            generator: Chooses the members.
        """
        rows, members = torch.arange(len(obs)), len(self.layers[0].weight)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(horizon):
            action = act(obs)
            chosen = torch.randint(members, (len(obs),), generator=generator)
            change = self(obs, action)[chosen, rows] * self.outputs_std + self.outputs_mean
            columns.append((obs, action, change[:, -1]))
            obs = obs + change[:, :-1]
        seen, actions, rewards = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
        return Trajectories(seen, actions, rewards, torch.zeros(rewards.shape, dtype=torch.bool))
