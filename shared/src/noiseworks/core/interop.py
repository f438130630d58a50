"""Diffusers schedulers as schedules, and back. Diffusers itself is only touched through the objects given.

Three readings of a "timestep" meet here: DDIM-like schedulers index a table, Euler-like ones may hold
fractional indices (749.25), and flow schedulers say 1000 σ. `HostSchedule.level` reads each as its host does.
"""

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.params import PREDICTION_TYPES, level_from_sigma_ve
from noiseworks.core.schedules import (
    ContinuousSchedule,
    Level,
    Schedule,
    TableSchedule,
    flow,
    from_betas,
    shift_time,
    table_schedule,
    zero_terminal,
)
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# diffusers' name -> ours
_BETA_KINDS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}


@dataclass(frozen=True)
class HostSchedule:
    """What a host's scheduler says about noise.

    Attributes:
        schedule: The training schedule; for flows the unshifted path, because timesteps carry the shift.
        prediction_type: What the network predicts, in diffusers' words.
        num_train_timesteps: N.
        final_level: The level that the last sampling step goes to; clean, except where the host stops at ᾱ_0.
        shift: Time shift of a flow's sampling grid, else 1.
    """

    schedule: Schedule
    prediction_type: str
    num_train_timesteps: int
    final_level: Level
    shift: float = 1.0

    @property
    def is_flow(self) -> bool:
        """Whether the path is that of rectified flow."""
        return isinstance(self.schedule, ContinuousSchedule)

    def level(self, timestep: Tensor | float) -> Level:
        """Return the level of the host's timesteps, of any shape; fractional ones interpolate the log-SNR."""
        if self.is_flow:
            return self.schedule.level(
                torch.as_tensor(timestep, dtype=torch.float64) / self.num_train_timesteps
            )
        return self.schedule.level(timestep)


def from_scheduler(scheduler: "SchedulerMixin") -> HostSchedule:
    """Read a diffusers scheduler.

    The float32 table of diffusers is recomputed in float64 where the configuration says how it was made.

    Args:
        scheduler: A scheduler with a table of ᾱ (DDIM, DDPM, Euler, DPM-Solver++ ...) or a flow-matching one.

    Raises:
        UnsupportedHostError: When it has neither, or an unknown prediction type.
    """
    config = scheduler.config
    clean = Level(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    if is_flow_scheduler(scheduler):
        shift = config.get("shift", config.get("flow_shift", 1.0)) or 1.0
        return HostSchedule(flow(), "flow_prediction", config.num_train_timesteps, clean, float(shift))
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise UnsupportedHostError(
            f"{type(scheduler).__name__} has no alphas_cumprod and is no flow scheduler"
        )
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UnsupportedHostError(
            f"unknown prediction_type {prediction_type!r} of {type(scheduler).__name__}"
        )
    schedule = _exact_table(scheduler)
    final = clean if config.get("set_alpha_to_one", True) else schedule.level(0)
    return HostSchedule(schedule, prediction_type, config.num_train_timesteps, final)


def is_flow_scheduler(scheduler: "SchedulerMixin") -> bool:
    """Return whether a scheduler runs on the path of rectified flow."""
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas", False))


def _exact_table(scheduler: "SchedulerMixin") -> TableSchedule:
    config = scheduler.config
    given = scheduler.alphas_cumprod.detach().double().cpu()
    betas, kind = config.get("trained_betas"), _BETA_KINDS.get(config.get("beta_schedule"))
    if betas is not None:
        exact = from_betas(torch.as_tensor(betas, dtype=torch.float64), "trained")
    elif kind is not None:
        exact = table_schedule(kind, config.num_train_timesteps, config.beta_start, config.beta_end)
    else:
        return TableSchedule(str(config.get("beta_schedule")), given)
    if config.get("rescale_betas_zero_snr", False):
        exact = zero_terminal(exact)
    # A scheduler whose table was replaced by hand keeps its table.
    same = exact.num_steps == given.numel() and torch.allclose(
        exact.alphas_cumprod, given, rtol=1e-4, atol=1e-6
    )
    return exact if same else TableSchedule("table", given)


def sampling_levels(scheduler: "SchedulerMixin") -> tuple[Tensor, list[Level]]:
    """Return the timesteps that a scheduler will call the network at, and the levels that its run visits.

    Args:
        scheduler: After `set_timesteps`.

    Returns:
        The n timesteps as the scheduler holds them, and n + 1 scalar levels, noisy to final.

    Raises:
        InputError: When `set_timesteps` was not called.
        UnsupportedHostError: As in `from_scheduler`.
    """
    host = from_scheduler(scheduler)
    timesteps = scheduler.timesteps
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise InputError("call scheduler.set_timesteps(n) first")
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        # Two-evaluation schedulers repeat inner levels; their runs have no list of one level a call.
        if len(sigmas) != len(timesteps) + 1 or not bool((sigmas.diff() < 0).all()):
            raise UnsupportedHostError(f"{type(scheduler).__name__} calls the network more than once a step")
        exact = sigmas.double().cpu()
        if host.is_flow:
            return timesteps, [Level(1 - sigma, sigma) for sigma in exact]
        return timesteps, [level_from_sigma_ve(sigma) for sigma in exact]
    levels = [host.level(int(t)) for t in timesteps]
    after = int(timesteps[-1]) - host.num_train_timesteps // scheduler.num_inference_steps
    return timesteps, [*levels, host.level(after) if after >= 0 else host.final_level]


def to_scheduler(
    schedule: Schedule, scheduler_class: type["SchedulerMixin"], *, prediction_type: str = "epsilon"
) -> "SchedulerMixin":
    """Return a diffusers scheduler with this schedule.

    Args:
        schedule: A `TableSchedule`, handed over as `trained_betas`, or `flow()`, for flow-matching classes.
        scheduler_class: A class of diffusers, for instance `DDIMScheduler`.
        prediction_type: What the network predicts; flows always predict the flow.

    Raises:
        InputError: When the schedule has no counterpart in the class.
    """
    name = scheduler_class.__name__
    if isinstance(schedule, ContinuousSchedule):
        if schedule.kind != "flow" or "FlowMatch" not in name:
            raise InputError(
                f"the {schedule.kind} schedule has no counterpart in {name}; use a TableSchedule"
            )
        # The schedule's shift is read off its midpoint: σ(½) = s / (s + 1).
        middle = float(schedule.sigma(0.5))
        return scheduler_class(shift=middle / (1 - middle))
    check_choice("prediction_type", prediction_type, ("epsilon", "v_prediction", "sample"))
    if "FlowMatch" in name:
        raise InputError(f"{name} needs a flow schedule, got {schedule.kind}")
    settings = {
        "num_train_timesteps": schedule.num_steps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": prediction_type,
    }
    if "clip_sample" in signature(scheduler_class.__init__).parameters:
        settings["clip_sample"] = False
    return scheduler_class(**settings)


def sigmas_ve(schedule: TableSchedule) -> Tensor:
    """Return σ/α of all N levels, rising, float64: the levels of Euler-like schedulers."""
    return schedule.level(torch.arange(schedule.num_steps)).sigma_ve


def init_noise_sigma(sigma_max: Tensor | float, spacing: str) -> Tensor:
    """Return the spread of the first latents of an Euler-like run: σ_max, `leading`: `√(σ_max² + 1)`."""
    sigma = torch.as_tensor(sigma_max, dtype=torch.float64)
    return (sigma**2 + 1).sqrt() if spacing == "leading" else sigma


def input_scale(sigma: Tensor | float) -> Tensor:
    """Return `1/√(σ² + 1)`, what Euler-like schedulers multiply the network's input by."""
    return 1 / (torch.as_tensor(sigma, dtype=torch.float64) ** 2 + 1).sqrt()


def flow_match_sigmas(
    num_inference_steps: int, shift: float = 1.0, num_train_timesteps: int = 1000
) -> Tensor:
    """Return the default grid of `FlowMatchEulerDiscreteScheduler`, float64, (n + 1,), final 0 included.

    The scheduler shifts twice: its range is that of the shifted training times, and the grid laid over the
    range is shifted again. With shift 3 and 4 steps it visits 1, 0.857692, 0.602151, 0.008929, 0.
    """
    check_number("num_inference_steps", num_inference_steps, low=1, high=num_train_timesteps, integer=True)
    lowest = shift_time(1 / num_train_timesteps, shift)
    grid = shift_time(torch.linspace(1, lowest, num_inference_steps, dtype=torch.float64), shift)
    return torch.cat([grid, grid.new_zeros(1)])
