"""Gradients through a whole run of a pipeline: its own loop, scheduler and guidance, with the memory of one step.

A pipeline's `__call__` is run without its `no_grad`, and each call of the denoiser is a checkpoint: its activations are
dropped and computed again on the way back. What stays of a step are its latents, once where guidance shows the same
ones to every role, so the memory hardly depends on the number of steps, and the gradient is that of the plain graph,
for every scheduler, also for those that keep earlier outputs. This costs one further evaluation a step.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.kits.attachments import Wrap, attach
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Around = Callable[[int], AbstractContextManager[Any]]


class _Through(DenoiserHook):
    """Runs each evaluation inside `around(step)`, and where that is wanted as a checkpoint."""

    def __init__(self, pipe: "DiffusionPipeline", around: Around, checkpointed: bool) -> None:
        super().__init__(pipe)
        self.around, self.checkpointed = around, checkpointed

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate the denoiser."""
        return self.evaluate(replace(call, beneath=self._step(call)))

    def _step(self, call: DenoiserCall) -> Callable[..., Any]:
        step, beneath = call.run.step, call.beneath  # not the call itself, which holds its tensors

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.around(step):
                return beneath(*args, **kwargs)

        if not self.checkpointed:
            return run
        roles = call.rows // call.run.batch
        return partial(_checkpoint, run, self.layout.sample, roles)


def _checkpoint(run: Callable[..., Any], name: str, roles: int, *args: Any, **kwargs: Any) -> Any:
    """Evaluate as a checkpoint that holds one role's rows of the sample where all roles have the same.

    Args:
        run: The evaluation.
        name: The argument that holds the sample when it is not the first positional one.
        roles: Blocks of rows in the sample.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """
    if args:
        sample, rest = args[0], args[1:]
        again = lambda tensor: run(tensor, *rest, **kwargs)  # noqa: E731
    else:
        sample = kwargs.pop(name)
        again = lambda tensor: run(**{name: tensor}, **kwargs)  # noqa: E731

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        first, *others = tensor.chunk(roles)
        if others and all(torch.equal(first, other) for other in others):
            return first.clone(), roles
        return tensor, 1

    def unpack(held: tuple[Tensor, int]) -> Tensor:
        tensor, times = held
        return torch.cat([tensor] * times) if times > 1 else tensor

    # The hooks are on what the checkpoint saves to evaluate again; gradients go by the graph of the first evaluation.
    # Nothing is drawn inside a denoiser in evaluation mode, so there is no random state to keep.
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return checkpoint(again, sample, use_reentrant=False, preserve_rng_state=False)


def through_run(
    pipe: "DiffusionPipeline",
    arguments: Mapping[str, Any],
    *,
    around: Around | None = None,
    checkpointed: bool = True,
) -> Tensor:
    """Return a run's final latents with a graph to all that requires gradients in the denoiser.

    Args:
        pipe: The pipeline, with whatever is attached to it; its weights need not require gradients.
        arguments: Of its call, without `output_type`; the generators decide the noise.
        around: `around(step)` is a context in which the denoiser's calls of a step run, once more on the way back; it
            may set what attached methods read there, and what it computes for that is the same at each time.
        checkpointed: Whether steps are computed again on the way back, instead of kept.

    Returns:
        `[B, C, h, w]` (packed `[B, tokens, C]` on FLUX), as the decoder takes them but for the scaling factor.

    Raises:
        NonFiniteError: When a prediction is not finite.
    """
    hook = _Through(pipe, around or (lambda step: nullcontext()), checkpointed and torch.is_grad_enabled())
    call = type(pipe).__call__.__wrapped__  # without `torch.no_grad`
    with attach_hook(hook, "gradients through the run"):
        if layout_of(pipe).family != "dit":
            return call(pipe, **arguments, output_type="latent").images
        found = []  # DiT's pipeline cannot stop before it decodes

        def take(beneath: Callable[..., Any], latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(latents * pipe.vae.config.scaling_factor)
            with torch.no_grad():
                return beneath(latents, *args, **kwargs)

        with attach("gradients through the run", [Wrap(pipe.vae, take, "decode")]):
            call(pipe, **arguments, output_type="pt")
        return found[0]
