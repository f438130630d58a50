"""One entry for every method: measurements in, images and what they cost out."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from noiseworks.core.checks import check_choice
from noiseworks.core.timing import synchronize
from noiseworks.red_diff.operators import Operator
from noiseworks.red_diff.options import METHODS, Baselines, RedDiff
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
    method: str = "red-diff",
    *,
    settings: RedDiff = RedDiff(),
    baselines: Baselines = Baselines(),
    sigma_y: float = 0.0,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore images from measurements.

    Args:
        prior: The diffusion model.
        operator: What was measured.
        y: Measurements, `[B, ...]`.
        method: red-diff, dps, pigdm, ddrm, or start (what the operator alone gives).
        settings: Of RED-diff; every method takes its number of steps.
        baselines: Of the others.
        sigma_y: Deviation of the noise, which PiGDM and DDRM use.
        seeds: One a sample.
        progress: Called with (steps done, steps in all).

    Raises:
        InputError: When shapes do not fit or the method cannot take the operator.
        NonFiniteError: When images are no longer finite.
    """
    check_choice("method", method, METHODS)
    operator.check(y)
    synchronize(y.device)
    begin = time.perf_counter()
    images = operator.start(y).detach()
    done = 0
    for made in _run(prior, operator, y, method, settings, baselines, sigma_y, seeds):
        images, done = made, done + 1
        if progress is not None:
            progress(done, settings.num_steps)
    synchronize(y.device)
    seconds = time.perf_counter() - begin
    images = images.detach()
    return Restored(images, residual(operator, images, y) / operator.measurements**0.5, seconds, done)


def _run(prior, operator, y, method, settings, baselines, sigma_y, seeds) -> Iterator[Tensor]:
    steps, eta = settings.num_steps, baselines.eta
    match method:
        case "red-diff":
            return (one.image for one in steps_of(prior, operator, y, settings, seeds=seeds))
        case "dps":
            return dps_steps(
                prior, operator, y, steps, step_size=baselines.step_size, eta=eta or 0.0, seeds=seeds
            )
        case "pigdm":
            eta = 1.0 if eta is None else eta
            return pigdm_steps(
                prior,
                operator,
                y,
                steps,
                sigma_y=sigma_y,
                eta=eta,
                start_step=baselines.start_step,
                seeds=seeds,
            )
        case "ddrm":
            eta = 0.85 if eta is None else eta
            return ddrm_steps(prior, operator, y, steps, sigma_y=sigma_y, eta=eta, seeds=seeds)
    return iter(())


def best_of(
    restarts: int,
    prior: Prior,
    operator: Operator,
    y: Tensor,
    method: str = "red-diff",
    *,
    seeds: Sequence[int] | None = None,
    settings: RedDiff = RedDiff(),
    baselines: Baselines = Baselines(),
    sigma_y: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """Restore with other noise `restarts` times and keep of each image the one with the least residual.

    Phase retrieval needs it: an image and its reflection have the same magnitudes. The arguments are those of
    `restore`; restart k of a sample has its seed + k * 2^32.
    """
    seeds = range(len(y)) if seeds is None else seeds
    best: Restored | None = None
    for k in range(restarts):
        other = restore(
            prior,
            operator,
            y,
            method,
            settings=settings,
            baselines=baselines,
            sigma_y=sigma_y,
            seeds=[seed + (k << 32) for seed in seeds],
            progress=progress,
        )
        best = other if best is None else _better(best, other)
    return best


def _better(best: Restored, other: Restored) -> Restored:
    """Return of each image the one with the smaller residual, and what both cost."""
    better = other.residual < best.residual
    return Restored(
        torch.where(better.reshape(-1, 1, 1, 1), other.images, best.images),
        torch.minimum(other.residual, best.residual),
        best.seconds + other.seconds,
        best.steps + other.steps,
    )
