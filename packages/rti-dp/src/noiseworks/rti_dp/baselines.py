"""What a warm start is compared with: the same few steps from fresh noise, and averages over the last plans."""

from collections.abc import Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.protocols import Generators
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.rti_dp.options import STEPS, Stepping
from noiseworks.rti_dp.stepping import step_table
from torch import Tensor


class TruncatedPolicy(DiffusionPolicy):
    """Runs a short list of steps from fresh noise, as if noise were a sample at level `steps[0]`; it should fail.

    Args:
        host: A `DenoiserHost`, or a policy of LeRobot or the diffusion_policy library.
        steps: Denoising indices, decreasing.
        stepping: See `RTIPolicy`.
        solver: `ddpm` or `ddim`.
        execute: Actions executed of each prediction.
        num_envs: Environments that it acts in.
        seed: Seed of the noise of environments whose reset names none.
    """

    def __init__(
        self,
        host: Any,
        steps: Sequence[int] = STEPS,
        *,
        stepping: Stepping = "consistent",
        solver: Solver = "ddpm",
        execute: int = 1,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        host = as_host(host)
        table = step_table(host.scheduler, steps, stepping=stepping, solver=solver)
        super().__init__(host, table=table, cache=True, num_envs=num_envs, n_action_steps=execute, seed=seed)


class EnsemblePolicy(DiffusionPolicy):
    """Plans from fresh noise at every step and executes a weighted mean of what all plans say about now.

    Temporal ensembling (Zhao et al. 2023, ACT): the plans that reach to the current step, the oldest first, have the
    weights exp(-m i), i = 0, 1, ... The mean is taken in normalised units.

    Args:
        host: A `DenoiserHost`, or a policy of LeRobot or the diffusion_policy library.
        m: Rate of the weights, at least 0; the larger, the more the oldest plan counts. The paper's is 0.01.
        solver: `ddpm` or `ddim`.
        num_inference_steps: Network calls of a replan; all of the training's by default.
        num_envs: Environments that it acts in.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
    """

    def __init__(
        self,
        host: Any,
        *,
        m: float = 0.01,
        solver: Solver = "ddim",
        num_inference_steps: int | None = 10,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        check_number("m", m, low=0)
        host = as_host(host)
        self.m, self.plans, self.ages = m, torch.empty(0), torch.empty(0)
        super().__init__(
            host,
            solver=solver,
            num_inference_steps=num_inference_steps,
            num_envs=num_envs,
            n_action_steps=1,
            seed=seed,
        )
        kept = host.horizon - self.chunk.start
        self.plans = torch.zeros(num_envs, kept, host.horizon, host.action_dim)
        # Steps since each plan was made; -1 where there is none.
        self.ages = torch.full((num_envs, kept), -1)

    def forget(self, ids: Sequence[int]) -> None:
        """Drop the plans of some environments."""
        if len(self.ages):
            self.ages[list(ids)] = -1

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return new predictions whose entry for now is the mean over plans, and the number of network calls."""
        x, calls = super().plan(cond, ids, generator, rows)
        if ids is None:
            return x, calls
        index, start = torch.as_tensor(list(ids)), self.chunk.start
        ages = self.ages[index]
        ages = torch.where(ages >= 0, ages + self.since[index, None], -1)
        ages[ages >= self.ages.shape[1]] = -1
        free = ages.argmin(dim=1)  # one plan at least has run out or was never made
        ages.scatter_(1, free[:, None], 0)
        self.ages[index], self.plans[index, free] = ages, x.to(self.plans)
        older = (ages[:, None] > ages[:, :, None]).sum(dim=2)
        weights = torch.exp(-self.m * older) * (ages >= 0)
        entry = (start + ages.clamp_min(0))[..., None, None].expand(-1, -1, 1, x.shape[2])
        said = self.plans[index].gather(2, entry)[:, :, 0]
        x[:, start] = ((weights[..., None] * said).sum(1) / weights.sum(1, keepdim=True)).to(x)
        return x, calls
