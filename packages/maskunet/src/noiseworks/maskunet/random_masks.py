"""Masks that nothing was learned for: does zeroing some weights at some steps help at all (the paper's observation)?"""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook
from noiseworks.kits.weight_masks import linear_of, mask_weights
from noiseworks.maskunet.masking import NAME, masked_layers
from noiseworks.maskunet.options import RandomMasks
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def bits(weight: Tensor, masks: RandomMasks, seed: int) -> Tensor:
    """Return a mask of a weight [out, in] that keeps `masks.keep` of it, rounded to whole weights.

    Args:
        weight: W.
        masks: Which weights go.
        seed: Of random ones.
    """
    count = weight.numel()
    if masks.which == "random":
        score = torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    else:
        score = weight.detach().float().abs().flatten()
        score = -score if masks.which == "largest" else score
    gone = score.argsort(stable=True)[: count - round(masks.keep * count)]
    mask = torch.ones(count, device=weight.device)
    mask[gone] = 0.0
    return mask.view_as(weight)


class _Steps(DenoiserHook):
    """Knows whether the step at hand is one with masks."""

    def __init__(self, pipe: "DiffusionPipeline", masks: RandomMasks) -> None:
        super().__init__(pipe)
        self.masks, self.active = masks, False

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate with masks, or without."""
        last = self.masks.last_step
        self.active = call.run.step >= self.masks.first_step and (last is None or call.run.step < last)
        try:
            return self.evaluate(call)
        finally:
            self.active = False


class RandomHandle:
    """Attached random masks; a context manager that detaches at its end."""

    def __init__(self, pipe: "DiffusionPipeline", masks: RandomMasks) -> None:
        steps = _Steps(pipe, masks)
        model, none = steps.denoiser, torch.ones(1, 1)
        paths = [path for paths in masked_layers(model).values() for path in paths]

        def mask_of(number: int, path: str) -> Callable[[Tensor], Tensor]:
            mask = bits(linear_of(model, path).weight, masks, mix64(masks.random_seed, number) >> 1)
            return lambda x: mask if steps.active else none

        self._masks = mask_weights(model, {path: mask_of(k, path) for k, path in enumerate(paths)}, NAME)
        self._steps = attach_hook(steps, f"{NAME} steps")

    def detach(self) -> None:
        """Take the masks off; a second call does nothing."""
        self._steps.detach()
        self._masks.detach()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()


def attach_random(pipe: "DiffusionPipeline", masks: RandomMasks = RandomMasks()) -> RandomHandle:
    """Let a pipeline draw with random masks, the same for all samples, within a range of steps.

    Args:
        pipe: The pipeline.
        masks: Which weights go, and when.

    Raises:
        InputError: When masks are attached already.
    """
    return RandomHandle(pipe, masks)
