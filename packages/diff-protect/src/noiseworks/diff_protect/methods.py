"""The whole table of attacks: mode, direction, start (arXiv 2311.12832, section 4 and its released code).

All are L-infinity PGD that minimises the stated objective:

| name | objective | start |
|---|---|---|
| advdm+, advdm- | -L_S, +L_S through the U-Net | uniform |
| photoguard | L_T, to a target | uniform |
| mist, mist- | L_T - 10^4 L_S, -L_T - 10^4 L_S | uniform |
| texture-self | -L_T with the image itself as the target | uniform |
| sds+, sds- | score distillation | zero |
| sdst- | score distillation, descending, with a target | zero |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from noiseworks.core.checks import check_choice
from noiseworks.diff_protect.options import NAMES, Method
from noiseworks.diff_protect.purifying_steps import Purified
from noiseworks.kits.protection.engine import Gradient, Protected, State, projected_gradient, random_signs
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.objectives import ScoreDistillation, Semantic, TargetLatent, stripes
from noiseworks.kits.protection.options import Budget, parse_transforms
from noiseworks.kits.protection.transforms import Transformed
from torch import Tensor

MIST_RATE = 1e4


@dataclass(frozen=True)
class Case:
    """What an objective is made of.

    Attributes:
        host: The pipeline.
        images: The originals.
        target: Image of targeted methods, [1, 3, H, W].
        rate: Weight of the score in sdst-.
        sample: Whether the posterior is sampled.
    """

    host: Host
    images: Tensor
    target: Tensor
    rate: float
    sample: bool


@dataclass
class _PushedMist:
    """Mist with direction -: the released code turns the textural term only, -L_T - 10^4 L_S."""

    semantic: Semantic
    textural: TargetLatent

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        pushed, away = self.textural(images, generators)
        found, loss = self.semantic(images, generators)
        return pushed + MIST_RATE * found, away + MIST_RATE * loss


METHODS: Mapping[str, Callable[[Case], Gradient]] = {
    "advdm+": lambda c: Semantic(c.host, 1.0, sample=c.sample),
    "advdm-": lambda c: Semantic(c.host, -1.0, sample=c.sample),
    "photoguard": lambda c: TargetLatent(c.host, c.target, sample=c.sample),
    "mist": lambda c: Semantic(c.host, 1.0, c.target, MIST_RATE, sample=c.sample),
    "mist-": lambda c: _PushedMist(
        Semantic(c.host, 1.0, sample=c.sample),
        TargetLatent(c.host, c.target, direction=-1.0, sample=c.sample),
    ),
    "texture-self": lambda c: TargetLatent(c.host, c.images, direction=-1.0, sample=c.sample),
    "sds+": lambda c: ScoreDistillation(c.host, 1.0, sample=c.sample),
    "sds-": lambda c: ScoreDistillation(c.host, -1.0, sample=c.sample),
    "sdst-": lambda c: ScoreDistillation(c.host, -1.0, c.target, c.rate, sample=c.sample),
}
FROM_ZERO = ("sds+", "sds-", "sdst-")


def protect_with(
    method: Method,
    host: Host,
    images: Tensor,
    budget: Budget,
    *,
    target: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    state: State | None = None,
    observe: Callable[[State], None] | None = None,
) -> Protected:
    """Return protected images, from the start that the method has.

    Args:
        method: Which one.
        host: A pipeline for text or image-to-image, or one that inpaints, which then sees the whole image as kept.
        images: [B, 3, H, W] in [0, 1].
        budget: How far images may be changed; its `start` is replaced by the method's.
        target: Image of targeted methods, [1, 3, H, W]; by default stripes.
        generators: One an image; by default from the budget's seed.
        state: Where an earlier run stopped.
        observe: Called with the state after each step.

    Raises:
        InputError: When the name is unknown.
    """
    check_choice("method", method.method, NAMES)
    if method.method == "random":
        return random_signs(images, budget)
    if method.method == "sds-z":
        from noiseworks.diff_protect.latent_attack import attack_latents

        return attack_latents(host, images, budget, generators=generators)
    budget = replace(budget, start="zero" if method.method in FROM_ZERO else "uniform")
    goal = stripes(*images.shape[-2:]).to(images) if target is None else target.to(images)
    sample = method.posterior == "sample"
    gradient = METHODS[method.method](Case(host, images, goal, method.rate, sample))
    if method.purified_steps:
        gradient = Purified(host, gradient)
    if method.hardened:
        gradient = Transformed(gradient, parse_transforms(method.hardened))
    more = {"generators": generators, "state": state, "observe": observe}
    return projected_gradient(images, gradient, budget, **more)
