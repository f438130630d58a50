"""Which scheduler per position denoises a stream, by the host's own schedule and the solver's name."""

from typing import Any

from diffusers import EDMEulerScheduler
from noiseworks.core.errors import InputError
from noiseworks.streaming_dp.edm import PerStepEDM
from noiseworks.streaming_dp.schedulers import PerStepDDIM, PerStepDDPM

StepScheduler = PerStepDDPM | PerStepDDIM | PerStepEDM


def per_step_scheduler(
    scheduler: Any, solver: str | None, num_levels: int, churn: float = 0.0
) -> StepScheduler:
    """Return a scheduler per position on a checkpoint's own schedule, with M inference levels.

    Args:
        scheduler: The host's diffusers scheduler; left as it is.
        solver: `ddpm`, `ddim` or `karras`: Euler's step in sigma on Karras' grid. On a discrete schedule the grid's
            sigmas are those of training timesteps, and Euler's step is DDIM's. By default `ddpm`, and `karras` for
            an EDM schedule, which has no other.
        num_levels: M, 1 to the number of training timesteps.
        churn: S_churn of `karras` on an EDM schedule; 0 is deterministic.

    Raises:
        InputError: When an argument is out of range or does not belong to the schedule.
    """
    if isinstance(scheduler, EDMEulerScheduler):
        if solver not in (None, "karras"):
            raise InputError(
                f"the policy was trained on an EDM schedule, whose solver is karras; got {solver!r}"
            )
        made = PerStepEDM.from_config(scheduler.config)
        made.set_timesteps(num_levels, s_churn=churn)
        return made
    kinds = {None: PerStepDDPM, "ddpm": PerStepDDPM, "ddim": PerStepDDIM, "karras": PerStepDDIM}
    if solver not in kinds:
        raise InputError(f"solver must be ddpm, ddim or karras, got {solver!r}")
    if churn:
        raise InputError(f"churn belongs to policies trained on an EDM schedule, got {churn}; leave it out")
    made = kinds[solver].from_config(scheduler.config)
    made.set_timesteps(num_levels, karras=solver == "karras")
    return made
