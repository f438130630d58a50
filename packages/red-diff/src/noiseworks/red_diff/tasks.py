"""A user's images, model and degradation as one inverse problem, and all methods on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.images import peak_signal_to_noise
from noiseworks.red_diff.degrading import operator_of, read_image
from noiseworks.red_diff.diffusers import check_size, image_shape, load_prior, on_host, prior_of, to_images
from noiseworks.red_diff.operators import Operator, SpectralOperator
from noiseworks.red_diff.options import Degradation, Method, Plan, Problem
from noiseworks.red_diff.priors import Prior
from noiseworks.red_diff.restoring import measure, restore
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class Task:
    """An inverse problem.

    Attributes:
        prior: The model.
        operator: What was measured, of latents where the model works on them.
        y: Measurements.
        shown: An image of them.
        clean: The images behind them, where they are known.
    """

    prior: Prior
    operator: Operator
    y: Tensor
    shown: Tensor
    clean: Tensor | None


def open_task(problem: Problem, degradation: Degradation, *, simulate: bool) -> Task:
    """Load a model and images.

    Args:
        problem: Which ones.
        degradation: What was done to them, or is to be done.
        simulate: Whether the images are clean and have to be degraded.

    Raises:
        InputError: When something is missing or of another size.
    """
    device = problem.torch_device()
    pipe = load_prior(problem.model, device, problem.torch_dtype())
    shape = image_shape(pipe)
    operator = operator_of(degradation, shape)
    images = read_images(problem.image).to(device)
    images = images.mean(1, keepdim=True) if shape[0] == 1 else images
    if simulate:
        check_size(images, shape)
        seeds = range(problem.seed, problem.seed + len(images))
        y, clean = measure(operator, images, degradation.sigma_y, seeds), images
    else:
        images = images.mean(1, keepdim=True) if operator.measured_shape[0] == 1 else images
        check_size(images, operator.measured_shape)
        known = isinstance(operator, SpectralOperator) and degradation.task in ("inpaint", "box")
        # What stands in the unknown places of an image is no measurement.
        y, clean = (images * operator.singulars.reshape(shape).to(images) if known else images), None
    shown = operator.start(y).clamp(-1, 1)
    return Task(prior_of(pipe, problem.prompt), on_host(operator, pipe), y, shown, clean)


def read_images(path: Path) -> Tensor:
    """Return an image, or those of a folder in the order of their names, `[n, 3, H, W]` in [-1, 1].

    Raises:
        InputError: When there is none, or their sizes differ.
    """
    if not path.is_dir():
        return read_image(path)
    images = [read_image(one) for one in sorted(path.iterdir()) if one.suffix.lower() in SUFFIXES]
    if not images or len({one.shape for one in images}) > 1:
        raise InputError(f"{path} must hold images of one size ({', '.join(SUFFIXES)}), it has {len(images)}")
    return torch.cat(images)


def compare_all(
    task: Task, methods: Sequence[Method], plan: Plan, seed: int, progress: Callable[..., None]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Restore the images of a task with every method that can take it.

    Args:
        task: The problem.
        methods: Names.
        plan: Settings of all.
        seed: Of the first image.
        progress: Called with (steps done, steps in all).

    Returns:
        A row a method, and the images by method, the clean ones first.
    """
    rows, shown = [], {"clean": task.clean}
    seeds = range(seed, seed + len(task.y))
    for method in methods:
        if not can(method, task.operator, plan.sigma_y):
            continue
        found = restore(
            task.prior, task.operator, task.y, replace(plan, method=method), seeds=seeds, progress=progress
        )
        shown[method] = to_images(task.operator, found.images)
        rows.append(
            {
                "method": method,
                "psnr": float(peak_signal_to_noise(task.clean, shown[method]).mean()),
                "residual": float(found.residual.mean()),
                "ms_per_step": 1000 * found.seconds / max(found.steps, 1),
            }
        )
    return rows, shown


def can(method: str, operator: Operator, sigma_y: float) -> bool:
    """Return whether a method takes an operator: DDRM needs its spectrum, and PiGDM where there is noise."""
    spectral = isinstance(operator, SpectralOperator)
    return spectral or method not in ("ddrm", "pigdm") or (method == "pigdm" and not sigma_y)
