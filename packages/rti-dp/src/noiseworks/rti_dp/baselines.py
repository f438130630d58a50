"""What a warm start is compared with: the same few steps from fresh noise."""

from collections.abc import Sequence
from typing import Any

from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.protocols import Generators
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.rti_dp.loop import DenoisingLoop, film_table
from noiseworks.rti_dp.stepping import Solver, Stepping, step_table
from torch import Tensor


class TruncatedPolicy(ReplanningPolicy):
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
        steps: Sequence[int] = (2, 1, 0),
        *,
        stepping: Stepping = "consistent",
        solver: Solver = "ddpm",
        execute: int = 1,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        host = as_host(host)
        super().__init__(host, num_envs=num_envs, n_action_steps=execute, seed=seed)
        self.table = step_table(host.scheduler, steps, stepping=stepping, solver=solver)
        self.loop, self.films = DenoisingLoop(host, num_envs), film_table(host, self.table.timesteps)

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return predictions from fresh noise and the number of network calls."""
        self.loop.draw_(self.loop.start(rows), generator)
        return self.loop.run(self.table, cond, rows, generator, self.films).clone(), len(self.table)
