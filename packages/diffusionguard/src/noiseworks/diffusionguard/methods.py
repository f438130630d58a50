"""The defences that DiffusionGuard is compared with, on the same engine, budget and masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from noiseworks.core.checks import check_choice
from noiseworks.diffusionguard.contours import ContourShrink
from noiseworks.diffusionguard.guarding import DiffusionGuard
from noiseworks.diffusionguard.options import NAMES, Guard
from noiseworks.kits.protection.engine import Gradient, Protected, State, projected_gradient, random_signs
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.objectives import (
    SampledImage,
    ScoreDistillation,
    Semantic,
    TargetLatent,
    stripes,
)
from noiseworks.kits.protection.options import Budget
from torch import Tensor

SAMPLER_STEPS = 4


def _target(images: Tensor) -> Tensor:
    return stripes(*images.shape[-2:]).to(images)


# Global defences see the whole image: they were made against editors of whole images.
METHODS: Mapping[str, Callable[[Host, Tensor, Tensor | None], Gradient]] = {
    "photoguard": lambda host, images, masks: TargetLatent(host, sample=False),
    "photoguard-diffusion": lambda host, images, masks: SampledImage(host, masks, SAMPLER_STEPS),
    "advdm": lambda host, images, masks: Semantic(host),
    "mist": lambda host, images, masks: Semantic(host, target=_target(images)),
    "sds": lambda host, images, masks: ScoreDistillation(host, direction=-1.0),
    "sdst": lambda host, images, masks: ScoreDistillation(host, direction=-1.0, target=_target(images)),
}
FROM_UNIFORM = ("photoguard", "advdm", "mist")  # as their authors start


def passes_a_step(name: str) -> int:
    """Return the passes of the U-Net, forward and backward, of an image in one step."""
    return {"photoguard": 0, "random": 0, "photoguard-diffusion": 2 * SAMPLER_STEPS, "sds": 1, "sdst": 1}.get(
        name, 2
    )


def protect_with(
    name: str,
    host: Host,
    images: Tensor,
    masks: Tensor | None,
    budget: Budget,
    guard: Guard = Guard(),
    *,
    shrink: ContourShrink | None = None,
    generators: Sequence[torch.Generator] | None = None,
    state: State | None = None,
    observe: Callable[[State], None] | None = None,
) -> Protected:
    """Return images protected by a defence of `options.NAMES`, which changes only what the masks keep.

    Args:
        name: The defence.
        host: The pipeline.
        images: [B, 3, H, W] in [0, 1].
        masks: [B, 1, H, W], 1 where an editor would repaint, or None.
        budget: The same for all defences; the start of `FROM_UNIFORM` is uniform within it.
        guard: Of DiffusionGuard.
        shrink: Its mask augmentation.
        generators: One an image.
        state: Where an earlier run stopped.
        observe: Called with the state after each step.

    Raises:
        InputError: When the name is unknown.
    """
    check_choice("method", name, NAMES)
    keep = None if masks is None else 1 - masks
    if name == "random":
        return random_signs(images, budget, support=keep)
    more = {"generators": generators, "state": state, "observe": observe}
    if name in ("diffusionguard", "no-augmentation"):
        chosen = guard if name == "diffusionguard" else replace(guard, contours="single")
        return DiffusionGuard(host, budget, chosen, shrink).protect(images, masks, **more)
    if name in FROM_UNIFORM:
        budget = replace(budget, start="uniform")
    return projected_gradient(images, METHODS[name](host, images, masks), budget, support=keep, **more)
