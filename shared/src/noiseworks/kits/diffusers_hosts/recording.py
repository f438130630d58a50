"""What a pipeline feeds its denoiser at one step, and what it gets."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook
from noiseworks.kits.diffusers_hosts.rows import prediction_of
from noiseworks.kits.diffusers_hosts.through import through_run
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class _Recorder(DenoiserHook):
    """Keeps one step's calls and what the host got for them, and stops the run behind them."""

    def __init__(self, pipe: "DiffusionPipeline", step: int) -> None:
        super().__init__(pipe)
        self.step, self.found = step, []

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate, and keep the call at its step."""
        if call.run.step > self.step:
            raise _Enough
        output = self.evaluate(call)
        if call.run.step == self.step:
            self.found.append((call, prediction_of(output)))
        return output


class _Enough(Exception):  # noqa: N818 - it ends a run on purpose and is caught below
    """The calls that were wanted are there."""


@torch.no_grad()
def record_step(
    pipe: "DiffusionPipeline", arguments: Mapping[str, Any], step: int = 0
) -> list[tuple[DenoiserCall, Tensor]]:
    """Return the denoiser's calls of one step (two on FLUX with guidance) and its predictions; the run ends there.

    Args:
        pipe: The pipeline, with whatever is attached to it.
        arguments: Of its call, without `output_type`.
        step: The step, from 0.
    """
    hook = _Recorder(pipe, step)
    with attach_hook(hook, "recording a step"), suppress(_Enough):
        through_run(pipe, arguments)
    return hook.found
