"""A base for hooks on a pipeline's denoiser that know the run, the step and the row layout.

See the guide "Write a denoiser hook". A hook is attached through `kits.attachments`: several methods and the
host's own hooks stand on one denoiser, and each leaves without a trace, in any order.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.attachments import Attachment, Rows, Wrap, attach
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of, layout_of
from noiseworks.kits.diffusers_hosts.levels import noise_level, prediction_type_of
from noiseworks.kits.diffusers_hosts.rows import prediction_of, take_rows
from noiseworks.kits.diffusers_hosts.runs import Caller, Loop, Run, steps_ahead
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(eq=False)
class DenoiserCall:
    """One call of the denoiser as the hook sees it.

    Attributes:
        run: The run that it belongs to.
        timestep: The timestep in the scheduler's units.
        role: The role of this call when each role has its own call, else None.
        sample: The denoiser's first input, `[rows, channels (, height, width)]`, with any extra input
            channels.
        beneath: What the hook stands on: the denoiser's forward, or an older hook.
        args: All positional arguments.
        kwargs: All keyword arguments.
    """

    run: Run
    timestep: float
    role: str | None
    sample: Tensor
    beneath: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]

    @property
    def rows(self) -> int:
        """The number of batch rows of this call."""
        return self.sample.shape[0]


@dataclass
class Counters:
    """What a hook let the denoiser do since it was made: rows of each forward pass."""

    rows: list[int] = field(default_factory=list)

    @property
    def forwards(self) -> int:
        """Number of forward passes."""
        return len(self.rows)


class DenoiserHook:
    """Base of hooks that wrap each call of a pipeline's denoiser.

    Subclasses override `denoise`, and `begin_run` when they keep something per run. Both see a
    `DenoiserCall`; `evaluate` runs what lies beneath, on all rows or on some. The hook acts on every pipeline
    that shares the denoiser, and in every thread; so what belongs to a run is kept in `call.run.state`.

    Args:
        pipe: A pipeline of a known family.

    Attributes:
        batch_rows: What the method does with batch rows, see `kits.attachments.attach`.

    Raises:
        UnsupportedHostError: When the pipeline's class is of no known family, or it has no denoiser.
    """

    batch_rows: ClassVar[Rows] = "any"

    def __init__(self, pipe: "DiffusionPipeline"):
        self.pipe = pipe
        self.layout = layout_of(pipe)
        self.denoiser = denoiser_of(pipe)
        self.counters = Counters()
        self._caller = Caller(pipe)
        self._context = threading.local()

    def begin_run(self, call: DenoiserCall) -> Any:
        """Prepare for a new run, before `denoise` at its first call; what it returns is `call.run.state`."""

    def denoise(self, call: DenoiserCall) -> Any:
        """Return the denoiser's output for a call; by default what lies beneath gives."""
        return self.evaluate(call)

    def report(self) -> Any:
        """Return what a handle's `report` shows: by default the counters."""
        return self.counters

    def evaluate(self, call: DenoiserCall, rows: Tensor | None = None) -> Any:
        """Run the denoiser (and the hooks beneath) on all rows of a call, or on some.

        Args:
            call: The call.
            rows: Row indices, int64 `[n]`, or None for all rows, untouched.

        Returns:
            The denoiser's output with `n` rows.

        Raises:
            NonFiniteError: When the prediction is not finite.
        """
        args, kwargs = call.args, call.kwargs
        if rows is not None:
            args, kwargs = take_rows((args, kwargs), rows, call.rows, self.layout.shared)
        self.counters.rows.append(call.rows if rows is None else len(rows))
        output = call.beneath(*args, **kwargs)
        call.run.check_finite(prediction_of(output))
        return output

    def level(self, call: DenoiserCall) -> tuple[float, float, str]:
        """Return (alpha, sigma, prediction type) at the call's timestep."""
        scheduler = call.run.scheduler
        return (*noise_level(scheduler, call.timestep), prediction_type_of(scheduler))

    def forward(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take the place of the denoiser's forward."""
        call = self._read(beneath, args, kwargs)
        output = self.denoise(call)
        if call.role == "cond":
            call.run.cond_output = output
        return output

    @contextmanager
    def in_context(self, beneath: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Take the place of the denoiser's `cache_context`, by which a host announces the role of a call."""
        before, self._context.role = getattr(self._context, "role", None), name
        try:
            with beneath(name, *args, **kwargs):
                yield
        finally:
            self._context.role = before

    def _read(self, beneath: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> DenoiserCall:
        sample = args[0] if args else kwargs[self.layout.sample]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        timestep = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        timestep /= self.layout.timestep_scale
        role = getattr(self._context, "role", None) if self.layout.calls == "contexts" else None
        loop = self._caller.find(self.denoiser)
        run = loop.runs.get(self)
        is_new = run is None or not run.goes_on(timestep, loop.schedule if loop.is_own else None)
        if is_new:
            run = self._new_run(loop, sample, timestep)
        else:
            run.advance(timestep)
        if role == "uncond":
            run.guided = True
        call = DenoiserCall(run, timestep, role, sample, beneath, args, kwargs)
        if is_new:
            run.state = self.begin_run(call)
            loop.runs[self] = run
        return call

    def _new_run(self, loop: Loop, sample: Tensor, timestep: float) -> Run:
        pipe = loop.pipe
        if (layout := layout_of(pipe)) != self.layout:
            raise UnsupportedHostError(
                f"a hook was attached to a pipeline of family {self.layout.family!r} and {type(pipe).__name__} "
                f"runs its denoiser as family {layout.family!r}: detach() first, and attach to that pipeline"
            )
        _check_cache(self.denoiser, "a hook")
        num_steps = steps_ahead(loop.schedule, timestep, loop.is_own)
        roles = len(layout.roles) if layout.calls == "rows" else 1
        guided = roles > 1 and _holds_all_roles(pipe, sample, roles)
        batch = sample.shape[0] // roles if guided else sample.shape[0]
        return Run(pipe, layout, loop.schedule, num_steps, batch, guided, timestep, arguments=loop.arguments)


class HookHandle[H: DenoiserHook]:
    """An attached hook. A context manager that detaches at its end; `detach` may be called in any order.

    Attributes:
        hook: The hook.
    """

    def __init__(self, hook: H, attachment: Attachment) -> None:
        self.hook, self._attachment = hook, attachment

    @property
    def attached(self) -> bool:
        """Whether `detach` has not been called yet."""
        return self._attachment.attached

    @property
    def rows(self) -> list[int]:
        """Batch rows of each forward pass of the denoiser so far."""
        return self.hook.counters.rows

    @property
    def report(self) -> Any:
        """What the hook reports."""
        return self.hook.report()

    def detach(self) -> None:
        """Take the hook off: the denoiser is bit for bit what it would be without. A second call does nothing."""
        self._attachment.detach()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()


def latent_channels_of(pipe: "DiffusionPipeline") -> int:
    """Return how many channels of the denoiser's input and output are latents.

    Inpainting and InstructPix2Pix inputs carry further channels behind the latents, PixArt and DiT outputs
    carry the variance behind the prediction.
    """
    config = denoiser_of(pipe).config
    return min(config.in_channels, config.get("out_channels") or config.in_channels)


def attach_hook[H: DenoiserHook, T: HookHandle](
    hook: H, name: str, handle: Callable[[H, Attachment], T] = HookHandle
) -> T:
    """Put a hook on the denoiser of the pipeline that it was made for, outside of all that are there.

    Args:
        hook: The hook.
        name: The method's name, unique on the denoiser.
        handle: The class of the handle.

    Returns:
        The handle.

    Raises:
        InputError: When a hook of this name is attached already.
        UnsupportedHostError: When the denoiser has a feature cache switched on, whose tensors are tied to
            batch rows, or a method is attached that this one does not go with.
    """
    _check_cache(hook.denoiser, name)
    parts = [Wrap(hook.denoiser, hook.forward)]
    if hook.layout.calls == "contexts":
        parts.append(Wrap(hook.denoiser, hook.in_context, "cache_context"))
    return handle(hook, attach(name, parts, hook.batch_rows))


def _check_cache(denoiser: nn.Module, name: str) -> None:
    if getattr(denoiser, "is_cache_enabled", False):
        raise UnsupportedHostError(f"{name} cannot act while a feature cache is on: disable_cache() first")


def _holds_all_roles(pipe: "DiffusionPipeline", sample: Tensor, roles: int) -> bool:
    # Some pipelines say whether guidance is on. All of them feed the same latents to every role.
    if getattr(pipe, "do_classifier_free_guidance", True) is False or sample.shape[0] % roles:
        return False
    blocks = sample[:, : latent_channels_of(pipe)].chunk(roles)
    return all(bool((block == blocks[0]).all()) for block in blocks[1:])
