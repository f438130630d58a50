"""Which run a call of the denoiser belongs to: whose loop made it, and which timesteps that loop visits.

Pipelines share denoisers (image-to-image and inpainting pipelines made by `from_pipe`, base and refiner) and
tell them nothing about the loop around them. So a run is found from the call itself: the nearest pipeline
whose `__call__` is on this thread's stack is its caller, and what a method keeps for the run lives as long as
that call does. Pipelines take turns, nest and run in several threads without meeting each other's state.
"""

import sys
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.diffusers_hosts.layouts import Layout
from noiseworks.kits.diffusers_hosts.levels import distinct_timesteps
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, SchedulerMixin

_RUNS = "<noiseworks runs>"  # no name that a program could use


@dataclass(eq=False)
class Run:
    """One pass of a pipeline, or of a loop of the user's own, through its timesteps.

    Attributes:
        pipe: The pipeline whose call this is; for a loop outside of any pipeline the one attached to.
        layout: The pipeline's row layout.
        schedule: The timesteps that the loop goes through, in order.
        num_steps: Number of distinct timesteps that the run visits.
        batch: Samples in the batch (rows of one role).
        guided: Whether the rows hold all roles of the layout. With one call per role this is False until the
            "uncond" call comes.
        timestep: Timestep of the current step, in the scheduler's units.
        step: Index of the current step, 0 for the noisiest.
        cond_output: With one call per role: what the "cond" call of this step gave to the host.
        state: What the method keeps for this run; `DenoiserHook.begin_run` returns it.
        arguments: What the user passed to the pipeline's call, by name; empty outside of a pipeline.
    """

    pipe: "DiffusionPipeline"
    layout: Layout
    schedule: Tensor
    num_steps: int
    batch: int
    guided: bool
    timestep: float
    step: int = 0
    cond_output: Any = None
    state: Any = None
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list, repr=False)

    @property
    def scheduler(self) -> "SchedulerMixin":
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    @property
    def guidance_scale(self) -> float | None:
        """Guidance scale (`true_cfg_scale` on FLUX) at this moment, or None where the host does not say."""
        return self.setting("true_cfg_scale" if self.layout.calls == "contexts" else "guidance_scale")

    def setting(self, name: str) -> Any:
        """Return one of the pipeline's settings of this call, such as "guidance_rescale", or None."""
        # Where a pipeline keeps it as an attribute, callbacks may change it between steps.
        found = getattr(self.pipe, f"_{name}", None)
        return self.arguments.get(name) if found is None else found

    @property
    def is_last(self) -> bool:
        """Whether this is the last step."""
        return self.step == self.num_steps - 1

    def goes_on(self, timestep: float, schedule: Tensor | None) -> bool:
        """Return whether a call at `timestep` belongs to this run.

        Args:
            timestep: The call's timestep.
            schedule: The scheduler's list, where only that tells a new run of a user's own loop, else None.
        """
        return timestep <= self.timestep + 1e-4 and (schedule is None or schedule is self.schedule)

    def advance(self, timestep: float) -> None:
        """Go to the step of a timestep; second-order solvers come to one timestep twice.

        Raises:
            InputError: When the loop visits more timesteps than the schedule has.
        """
        if timestep == self.timestep:
            return
        self.step, self.timestep = self.step + 1, timestep
        if self.step >= self.num_steps:
            raise InputError(
                f"the denoiser was called at a timestep more than the {self.num_steps} that "
                f"{type(self.scheduler).__name__} was set to: call set_timesteps() before each run"
            )

    def check_finite(self, prediction: Tensor) -> None:
        """Stop the run when a prediction is not finite; on accelerators at the last step, without waiting earlier.

        Raises:
            NonFiniteError: Naming the step and the timestep.
        """
        self.unchecked.append((self.step, prediction.detach().isfinite().all()))
        if prediction.device.type != "cpu" and not self.is_last:
            return
        checked, self.unchecked = self.unchecked, []
        for step, finite in checked:
            if not bool(finite):
                raise NonFiniteError(
                    f"the denoiser's prediction is not finite at step {step} of {self.num_steps}: the model's "
                    f"weights or precision, or what is attached to it, gives NaN or infinity"
                )


# Of a pipeline's arguments only these are kept: others hold images and embeddings.
_ARGUMENTS = (
    "guidance_scale",
    "true_cfg_scale",
    "image_guidance_scale",
    "guidance_rescale",
    "height",
    "width",
    "prompt",
    "class_labels",
)


@dataclass(frozen=True, eq=False)
class Loop:
    """Who calls a denoiser.

    Attributes:
        pipe: The pipeline.
        runs: What hooks keep for this call of the pipeline, by hook.
        schedule: The timesteps that the loop goes through.
        variables: The variables of the pipeline's call, or None for a loop outside of any pipeline.
    """

    pipe: "DiffusionPipeline"
    runs: MutableMapping[Any, Run]
    schedule: Tensor
    variables: Mapping[str, Any] | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is a loop outside of any pipeline."""
        return self.variables is None

    @property
    def arguments(self) -> dict[str, Any]:
        """The pipeline's settings of this call."""
        variables = self.variables or {}
        return {name: variables[name] for name in _ARGUMENTS if name in variables}


class Caller:
    """Finds the pipeline that calls a denoiser, and keeps the runs of one hook, a run for each call of a pipeline.

    Args:
        pipe: The pipeline that the hook is attached to: it stands for loops outside of any pipeline.
    """

    def __init__(self, pipe: "DiffusionPipeline") -> None:
        self.pipe = pipe
        self._loops = threading.local()

    def find(self, denoiser: nn.Module) -> "Loop":
        """Return the loop that calls a denoiser at this moment."""
        found = _calling_pipeline(denoiser)
        if found is None:
            runs = self._loops.__dict__.setdefault("runs", {})
            return Loop(self.pipe, runs, self.pipe.scheduler.timesteps)
        pipe, variables = found
        # A key that is no local variable stays with the call's frame, and goes with it.
        runs = variables.setdefault(_RUNS, {})
        timesteps = variables.get("timesteps")
        # Pipelines that count their steps loop over a local `timesteps`, cut to what they visit.
        if not isinstance(timesteps, Tensor) or getattr(pipe, "_num_timesteps", None) is None:
            timesteps = pipe.scheduler.timesteps
        return Loop(pipe, runs, timesteps, variables)


def steps_ahead(schedule: Tensor, timestep: float, own_loop: bool) -> int:
    """Return how many distinct timesteps a run visits that begins at `timestep`.

    Raises:
        InputError: When the timestep is not in the schedule.
    """
    ahead = distinct_timesteps(schedule)
    index = next((i for i, t in enumerate(ahead) if abs(t - timestep) <= 1e-3 * max(1.0, abs(t))), None)
    if index is None:
        who = "a loop outside of any pipeline" if own_loop else "a pipeline"
        raise InputError(
            f"{who} called the denoiser at timestep {timestep:g}, which is not in the schedule that was set: "
            "call the scheduler's set_timesteps() first, or detach() while other loops use the denoiser"
        )
    return len(ahead) - index


def _calling_pipeline(
    denoiser: nn.Module,
) -> tuple["DiffusionPipeline", MutableMapping[str, Any]] | None:
    from diffusers import DiffusionPipeline, ModularPipeline

    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        # Only calls are looked into: reading a frame's variables would keep those of a user's program alive.
        if code.co_name == "__call__" and code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if isinstance(owner, DiffusionPipeline | ModularPipeline) and _holds(owner, denoiser):
                return owner, frame.f_locals
        frame = frame.f_back
    return None


def _holds(pipe: Any, denoiser: nn.Module) -> bool:
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if module is denoiser or getattr(module, "_orig_mod", None) is denoiser:
            return True
    return False
