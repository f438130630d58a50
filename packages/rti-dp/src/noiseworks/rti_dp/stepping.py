"""Lists of denoising indices, and where each of their steps leads to (RTI-DP, section III).

The steps themselves are the kit's: `noiseworks.kits.policies.steps`.
"""

from collections.abc import Sequence
from typing import Any

from noiseworks.core.checks import check_choice
from noiseworks.kits.policies import steps as kit
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.steps import StepTable
from noiseworks.rti_dp.options import StepNoise, Stepping


def next_steps(steps: Sequence[int], stepping: Stepping) -> tuple[int, ...]:
    """Return the level that each step of a list leads to.

    Args:
        steps: Decreasing indices.
        stepping: `consistent`: the next index of the list, and the clean end after the last. `reference`: k - 1,
            as the authors' code steps, so that after a jump the network is told a lower index than its input's
            level. They are the same for contiguous lists.
    """
    check_choice("stepping", stepping, ("consistent", "reference"))
    if stepping == "reference":
        return tuple(k - 1 for k in steps)
    return (*steps[1:], -1)


def step_table(
    scheduler: Any,
    steps: Sequence[int],
    *,
    stepping: Stepping = "consistent",
    solver: Solver = "ddpm",
    noise: StepNoise = "posterior",
) -> StepTable:
    """Return the coefficients of a list of steps under a diffusers scheduler's schedule.

    Args:
        scheduler: A diffusers scheduler with `alphas_cumprod`.
        steps: Decreasing indices.
        stepping: See `next_steps`.
        solver: `ddpm` or `ddim` (deterministic).
        noise: `posterior`, or `none` for the mean of the DDPM step.

    Raises:
        InputError: When the list or a choice is wrong.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """
    check_choice("noise", noise, ("posterior", "none"))
    steps = tuple(steps)
    return kit.step_table(
        scheduler, steps, next_steps(steps, stepping), solver=solver, noisy=noise == "posterior"
    )
