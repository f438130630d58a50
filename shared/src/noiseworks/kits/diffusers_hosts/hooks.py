"""A base for hooks on a pipeline's denoiser that know the run, the step and the row layout.

Pipelines tell a denoiser nothing about the loop around it, so the hook finds out by itself: a new run has
begun when the scheduler's timesteps were set anew or when the timestep grows; a new step when the timestep
changes (second-order solvers call the denoiser twice in a step).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of, layout_of
from noiseworks.kits.diffusers_hosts.levels import distinct_timesteps, noise_level, prediction_type_of
from noiseworks.kits.diffusers_hosts.rows import take_rows
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(eq=False)
class Run:
    """One pass of a pipeline through its timesteps.

    Attributes:
        num_steps: Number of distinct timesteps that the run will visit.
        batch: Samples in the batch (rows of one role).
        guided: Whether the rows hold all roles of the layout. With one call per role this is False until the
            "uncond" call comes.
        step: Index of the current step, 0 for the noisiest.
    """

    num_steps: int
    batch: int
    guided: bool
    step: int
    timestep: float
    schedule: Tensor


@dataclass(eq=False)
class DenoiserCall:
    """One call of the denoiser as the hook sees it.

    Attributes:
        run: The run that it belongs to.
        timestep: The timestep in the scheduler's units.
        role: The role of this call when each role has its own call, else None.
        sample: The denoiser's first input, `[rows, channels (, height, width)]`, with any extra input
            channels.
        args: All positional arguments.
        kwargs: All keyword arguments.
    """

    run: Run
    timestep: float
    role: str | None
    sample: Tensor
    args: tuple
    kwargs: dict[str, Any]

    @property
    def rows(self) -> int:
        """The number of batch rows of this call."""
        return self.sample.shape[0]


class _NoState(BaseState):
    def reset(self, *args, **kwargs) -> None:
        """Nothing is kept per context."""


@dataclass
class Counters:
    """What a hook let the denoiser do since it was made: rows of each forward pass."""

    rows: list[int] = field(default_factory=list)

    @property
    def forwards(self) -> int:
        """Number of forward passes."""
        return len(self.rows)


class DenoiserHook(ModelHook):
    """Base of hooks that wrap each call of a pipeline's denoiser.

    Subclasses override `denoise`, and `begin_run` when they keep something per run. Both see a
    `DenoiserCall`; `evaluate` runs what lies beneath, on all rows or on some.

    Args:
        pipe: A pipeline of a known family.

    Raises:
        UnsupportedHostError: When the pipeline's class is of no known family.
    """

    _is_stateful = True

    def __init__(self, pipe: "DiffusionPipeline"):
        super().__init__()
        self.pipe = pipe
        self.layout = layout_of(pipe)
        self.counters = Counters()
        self.run: Run | None = None
        # The host writes the name of the current cache context into every StateManager of a stateful hook.
        self.contexts = StateManager(_NoState)

    def begin_run(self, call: DenoiserCall) -> None:
        """Prepare for a new run; called before `denoise` at its first call."""

    def denoise(self, call: DenoiserCall) -> Any:
        """Return the denoiser's output for a call; by default what lies beneath gives."""
        return self.evaluate(call)

    def evaluate(self, call: DenoiserCall, rows: Tensor | None = None) -> Any:
        """Run the denoiser (and the hooks beneath) on all rows of a call, or on some.

        Args:
            call: The call.
            rows: Row indices, int64 `[n]`, or None for all rows, untouched.

        Returns:
            The denoiser's output with `n` rows.
        """
        args, kwargs = call.args, call.kwargs
        if rows is not None:
            args, kwargs = take_rows((args, kwargs), rows, call.rows, self.layout.shared)
        self.counters.rows.append(call.rows if rows is None else len(rows))
        return self.fn_ref.original_forward(*args, **kwargs)

    def level(self, call: DenoiserCall) -> tuple[float, float, str]:
        """Return (alpha, sigma, prediction type) at the call's timestep."""
        scheduler = self.pipe.scheduler
        return (*noise_level(scheduler, call.timestep), prediction_type_of(scheduler))

    def new_forward(self, module: nn.Module, *args, **kwargs) -> Any:
        """Take the place of the denoiser's forward."""
        call, is_new = self._read(args, kwargs)
        if is_new:
            self.begin_run(call)
        return self.denoise(call)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the run; the host calls this at the end of a run for some denoisers."""
        self.run = None
        return module

    def __deepcopy__(self, memo: dict) -> "DenoiserHook":
        raise InputError("a denoiser with an attached method cannot be copied: detach() first")

    def _read(self, args: tuple, kwargs: dict[str, Any]) -> tuple[DenoiserCall, bool]:
        sample = args[0] if args else kwargs[self.layout.sample]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        timestep = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        timestep /= self.layout.timestep_scale
        role = None
        if self.layout.calls == "contexts" and self.contexts._context is not None:
            role = self.contexts.context.name
        run, schedule = self.run, self.pipe.scheduler.timesteps
        is_new = run is None or run.schedule is not schedule or timestep > run.timestep + 1e-4
        if is_new:
            run = self.run = self._new_run(sample, timestep, schedule)
        elif timestep != run.timestep:
            run.step, run.timestep = run.step + 1, timestep
        if role == "uncond":
            run.guided = True
        return DenoiserCall(run, timestep, role, sample, args, kwargs), is_new

    def _new_run(self, sample: Tensor, timestep: float, schedule: Tensor) -> Run:
        # Image-to-image runs visit only the end of the scheduler's list.
        visited = getattr(self.pipe, "_num_timesteps", None) or len(schedule)
        num_steps = len(distinct_timesteps(schedule[-visited:]))
        roles = len(self.layout.roles) if self.layout.calls == "rows" else 1
        guided = roles > 1 and self._holds_all_roles(sample, roles)
        batch = sample.shape[0] // roles if guided else sample.shape[0]
        return Run(num_steps, batch, guided, 0, timestep, schedule)

    def _holds_all_roles(self, sample: Tensor, roles: int) -> bool:
        # Some pipelines say whether guidance is on. All of them feed the same latents to every role.
        if getattr(self.pipe, "do_classifier_free_guidance", True) is False or sample.shape[0] % roles:
            return False
        channels = latent_channels_of(self.pipe)
        blocks = sample[:, :channels].chunk(roles)
        return all(bool((block == blocks[0]).all()) for block in blocks[1:])


def latent_channels_of(pipe: "DiffusionPipeline") -> int:
    """Return how many channels of the denoiser's input and output are latents.

    Inpainting and InstructPix2Pix inputs carry further channels behind the latents, PixArt and DiT outputs
    carry the variance behind the prediction.
    """
    config = denoiser_of(pipe).config
    return min(config.in_channels, config.get("out_channels") or config.in_channels)


def attach_hook(pipe: "DiffusionPipeline", hook: DenoiserHook, name: str) -> None:
    """Register a hook on the pipeline's denoiser, outside of all that are there.

    Args:
        pipe: The pipeline that `hook` was made for.
        hook: The hook.
        name: The method's name, unique on the denoiser.

    Raises:
        InputError: When a hook of this name is attached already.
        UnsupportedHostError: When the denoiser has a feature cache switched on, whose tensors are tied to
            batch rows.
    """
    denoiser = denoiser_of(pipe)
    if getattr(denoiser, "is_cache_enabled", False):
        raise UnsupportedHostError(f"{name} cannot attach while a feature cache is on: disable_cache() first")
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(name) is not None:
        raise InputError(f"{name} is attached to this {type(denoiser).__name__} already: detach it first")
    registry.register_hook(hook, name)
    registry.invalidate_child_registries_cache()


def detach_hook(pipe: "DiffusionPipeline", name: str) -> None:
    """Remove a hook; without further hooks the denoiser is left exactly as it was before `attach_hook`.

    Args:
        pipe: The pipeline.
        name: The name that the hook was attached with; nothing happens when there is none.
    """
    denoiser = denoiser_of(pipe)
    registry = getattr(denoiser, "_diffusers_hook", None)
    if registry is None or registry.get_hook(name) is None:
        return
    # The host's registry does not re-link hooks that replace the call, so those outside go off and on again.
    outer = registry._hook_order[registry._hook_order.index(name) + 1 :]
    hooks = [(other, registry.get_hook(other)) for other in outer]
    for other in [*reversed(outer), name]:
        registry.remove_hook(other, recurse=False)
    for other, hook in hooks:
        registry.register_hook(hook, other)
    registry.invalidate_child_registries_cache()
    if not registry._hook_order:
        if denoiser.__dict__.get("forward") == type(denoiser).forward.__get__(denoiser):
            del denoiser.forward
        del denoiser._diffusers_hook
