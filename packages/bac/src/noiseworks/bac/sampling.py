"""Ancestral sampling on the kit's lean loop, in full or its last steps only.

With cached blocks a denoising step is so cheap that a scheduler's own arithmetic would dominate it.
"""

from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.steps import sampler_table


class FusedDiffusionPolicy(DiffusionPolicy):
    """The kit's `DiffusionPolicy` with the ancestral solver, or the last of its steps from fresh noise.

    Args:
        host: The trained policy, with a plan attached or not.
        num_inference_steps: Steps of the schedule; all of the training's by default.
        last_steps: Run only so many of them, the last ones, from fresh noise all the same: a naive baseline.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed of each prediction; the host's own number by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """

    def __init__(
        self,
        host: DenoiserHost,
        *,
        num_inference_steps: int | None = None,
        last_steps: int | None = None,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        table = sampler_table(host.scheduler, "ddpm", num_inference_steps)
        table = table if last_steps is None else table.last(last_steps)
        super().__init__(host, table=table, num_envs=num_envs, n_action_steps=n_action_steps, seed=seed)
