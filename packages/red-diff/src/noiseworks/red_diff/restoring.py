"""One entry for every method: measurements in, images and what they cost out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from noiseworks.core.timing import synchronize
from noiseworks.red_diff.operators import Operator
from noiseworks.red_diff.options import Plan
from noiseworks.red_diff.priors import MEASURED, Prior, noise_for
from noiseworks.red_diff.sampling import ddrm_steps, dps_steps, pigdm_steps
from noiseworks.red_diff.variational import residual, steps_of
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Restored:
    """What a method made of measurements.

    Attributes:
        images: `[B, C, H, W]`, not clipped.
        residual: |y - f(x)| / sqrt(M) of each image, to be compared with the noise's deviation, `[B]`.
        seconds: Of the whole batch.
        steps: Denoising steps.
    """

    images: Tensor
    residual: Tensor
    seconds: float
    steps: int


def measure(operator: Operator, images: Tensor, sigma_y: float, seeds: Sequence[int]) -> Tensor:
    """Return `f(x) + sigma_y n`; the noise of image i is that of seed i."""
    y = operator.forward(images)
    return y + sigma_y * noise_for(y, seeds, MEASURED) if sigma_y else y


def restore(
    prior: Prior,
    operator: Operator,
    y: Tensor,
    plan: Plan = Plan(),
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore images from measurements.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements, `[B, ...]`.
        plan: By which method, with which settings.
        seeds: One a sample, by default 0, 1, ...; restart k of a sample has its seed + k 2^32.
        progress: Called with (steps done, steps in all).

    Raises:
        InputError: When shapes do not fit or the method cannot take the operator.
        NonFiniteError: When images are no longer finite.
    """
    operator.check(y)
    seeds = range(len(y)) if seeds is None else seeds
    best: Restored | None = None
    for k in range(plan.restarts):
        one = _restore_once(prior, operator, y, plan, [seed + (k << 32) for seed in seeds], progress)
        best = one if best is None else _better(best, one)
    return best


def _restore_once(prior, operator, y, plan, seeds, progress) -> Restored:
    synchronize(y.device)
    begin = time.perf_counter()
    images, done = operator.start(y).detach(), 0
    for made in _states(prior, operator, y, plan, seeds):
        images, done = made, done + 1
        if progress is not None:
            progress(done, plan.settings.num_steps)
    synchronize(y.device)
    seconds = time.perf_counter() - begin
    images = images.detach()
    return Restored(images, residual(operator, images, y) / operator.measurements**0.5, seconds, done)


def _states(prior, operator, y, plan, seeds) -> Iterator[Tensor]:
    if plan.method == "red-diff":
        return (one.image for one in steps_of(prior, operator, y, plan.settings, seeds=seeds))
    if plan.method == "start":
        return iter(())
    steps = {"dps": dps_steps, "pigdm": pigdm_steps, "ddrm": ddrm_steps}[plan.method]
    return steps(prior, operator, y, plan, seeds=seeds)


def _better(best: Restored, other: Restored) -> Restored:
    """Return of each image the one with the smaller residual, and what both cost."""
    better = other.residual < best.residual
    return Restored(
        torch.where(better.reshape(-1, 1, 1, 1), other.images, best.images),
        torch.minimum(other.residual, best.residual),
        best.seconds + other.seconds,
        best.steps + other.steps,
    )
