"""Projected gradient steps on images, within a budget and the range of pixels.

A step: g = mean of the gradients; x <- x - a_k sign(g); clip to the ball around the original; clip to [0, 1]; outside
of the support the original, exactly. Objectives are minimised. The change is kept in the images' own precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.kits.protection.options import Budget
from torch import Tensor

Gradient = Callable[[Tensor, Sequence[torch.Generator]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands, enough to go on from with the same numbers.

    Attributes:
        delta: Change so far, [B, 3, H, W].
        step: Steps done.
        streams: State of each image's generator, uint8 [B, n].
        history: Mean objective of the steps done, [step].
    """

    delta: Tensor
    step: int
    streams: Tensor
    history: Tensor


@dataclass(frozen=True, eq=False)
class Protected:
    """What a run found.

    Attributes:
        images: The protected images, [B, 3, H, W] in [0, 1].
        history: Mean objective of each step, [steps].
        silent: Share of gradient entries in the support that were exactly zero, over the run; more than 0.05 tells
            of underflow in low precision.
    """

    images: Tensor
    history: Tensor
    silent: float

    def cpu(self) -> "Protected":
        """Return it on the CPU."""
        return Protected(self.images.cpu(), self.history.cpu(), self.silent)


def streams(budget: Budget, count: int, first: int = 0) -> list[torch.Generator]:
    """Return one generator an image: image `first + i` has seed `budget.seed + first + i`."""
    return [torch.Generator().manual_seed(budget.seed + first + i) for i in range(count)]


def draw_normal(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return standard normal numbers [B, *shape], row i from stream i, so that a row is the same in every batch."""
    rows = [torch.randn(*shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(like)


def draw_steps(generators: Sequence[torch.Generator], low: int, high: int, like: Tensor) -> Tensor:
    """Return uniform timesteps int64 [B] from low to high - 1, row i from stream i."""
    rows = [torch.randint(low, high, (1,), generator=generator) for generator in generators]
    return torch.cat(rows).to(like.device)


def projected_gradient(
    images: Tensor,
    gradient: Gradient,
    budget: Budget,
    *,
    support: Tensor | None = None,
    generators: Sequence[torch.Generator] | None = None,
    state: State | None = None,
    observe: Callable[[State], None] | None = None,
) -> Protected:
    """Minimise an objective over a small change of images.

    Args:
        images: Originals, floats [B, 3, H, W] in [0, 1].
        gradient: `gradient(images, generators) -> (gradient [B, 3, H, W], objective [B])`. An image's numbers must not
            depend on the others of its batch.
        budget: How far and in which steps; a largest change of 0 returns the originals.
        support: Where changes are allowed, 1 or 0 [B, 1, H, W]; by default everywhere.
        generators: One an image; by default from the budget's seed.
        state: Where an earlier run stopped, to go on from.
        observe: Called with the state after each step, to show or to keep it.

    Raises:
        InputError: When images lie outside of [0, 1].
        NonFiniteError: When the gradient is NaN or infinite, with the step.
    """
    if images.min() < 0 or images.max() > 1:
        raise InputError(f"images must lie in [0, 1], got {images.min().item():g} to {images.max().item():g}")
    generators = streams(budget, len(images)) if generators is None else generators
    allowed = torch.ones_like(images[:, :1]) if support is None else support.to(images)
    eps = budget.eps_255 / 255
    begun = 0 if state is None else state.step
    if state is None:
        delta = torch.zeros_like(images)
        if budget.start == "uniform":
            noise = [
                torch.rand(image.shape, generator=g) for image, g in zip(images, generators, strict=True)
            ]
            delta = _projected(images, (2 * torch.stack(noise).to(images) - 1) * eps, eps, budget.norm)
        delta = delta * allowed
        history: list[Tensor] = []
    else:
        delta, history = state.delta.to(images), list(state.history.unbind())
        for generator, kept in zip(generators, state.streams, strict=True):
            generator.set_state(kept.clone())  # a row of a larger tensor crashes torch
    zeros = 0.0
    for step in range(begun, budget.steps if eps > 0 else begun):
        total, value = torch.zeros_like(images), torch.zeros(len(images))
        for _ in range(budget.grad_reps):
            found, objective = gradient(images + delta, generators)
            total = total + found.to(images) / budget.grad_reps
            value = value + objective.detach().float().cpu() / budget.grad_reps
        check_finite("the gradient at the image", total, step)
        total = total * allowed
        zeros += float(((total == 0) * allowed).sum() / (3 * allowed.sum()).clamp(min=1))
        delta = delta - budget.size(step) * _direction(total, budget.norm)
        delta = _projected(images, delta, eps, budget.norm) * allowed
        history.append(value.mean())
        if observe is not None:
            kept = torch.stack([generator.get_state() for generator in generators])
            observe(State(delta, step + 1, kept, torch.stack(history)))
    series = torch.stack(history) if history else torch.zeros(0)
    protected = torch.where(allowed.bool(), images + delta, images)
    return Protected(protected.clamp(0, 1), series, zeros / max(1, budget.steps - begun))


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / (gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)


def _projected(images: Tensor, delta: Tensor, eps: float, norm: str) -> Tensor:
    """Return a change clipped to the ball, then so that the image stays in [0, 1]."""
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta * (eps / length.clamp(min=1e-30)).clamp(max=1)
    return torch.minimum(torch.maximum(delta, -images), 1 - images)


def random_signs(images: Tensor, budget: Budget, *, support: Tensor | None = None) -> Protected:
    """Return images with random signs of the largest change: what a protection has to beat."""
    allowed = torch.ones_like(images[:, :1]) if support is None else support.to(images)
    rows = [torch.rand(image.shape, generator=g) for image, g in
            zip(images, streams(budget, len(images)), strict=True)]  # fmt: skip
    signs = torch.where(torch.stack(rows).to(images) < 0.5, -1.0, 1.0)
    changed = (images + signs * budget.eps_255 / 255 * allowed).clamp(0, 1)
    return Protected(changed, torch.zeros(0), 0.0)
