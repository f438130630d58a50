"""A user's images, model and degradation as one inverse problem, and all methods on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.options import Hardware
from noiseworks.kits.images import peak_signal_to_noise
from noiseworks.red_diff.degrading import operator_of, read_image
from noiseworks.red_diff.diffusers import check_size, image_shape, load_prior, on_host, prior_of, to_images
from noiseworks.red_diff.operators import Operator, SpectralOperator
from noiseworks.red_diff.options import Baselines, Degradation, RedDiff
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


def open_task(
    model: str,
    image: Path,
    degradation: Degradation,
    hardware: Hardware,
    *,
    prompt: str = "",
    simulate: bool,
    seed: int,
) -> Task:
    """Load a model and images.

    Args:
        model: Its name.
        image: A file, or a folder of files.
        degradation: What was done to them, or is to be done.
        hardware: Where the model runs.
        prompt: For Stable Diffusion.
        simulate: Whether the images are clean and have to be degraded.
        seed: Of the measurement's noise.

    Raises:
        InputError: When something is missing or of another size.
    """
    device = hardware.torch_device()
    pipe = load_prior(model, device, hardware.torch_dtype())
    shape = image_shape(pipe)
    operator = operator_of(degradation, shape)
    images = read_images(image).to(device)
    images = images.mean(1, keepdim=True) if shape[0] == 1 else images
    if simulate:
        check_size(images, shape)
        y, clean = measure(operator, images, degradation.sigma_y, range(seed, seed + len(images))), images
    else:
        images = images.mean(1, keepdim=True) if operator.measured_shape[0] == 1 else images
        check_size(images, operator.measured_shape)
        known = isinstance(operator, SpectralOperator) and degradation.task in ("inpaint", "box")
        # What stands in the unknown places of an image is no measurement.
        y, clean = (images * operator.singulars.reshape(shape).to(images) if known else images), None
    shown = operator.start(y).clamp(-1, 1)
    return Task(prior_of(pipe, prompt), on_host(operator, pipe), y, shown, clean)


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
    task: Task,
    methods: Sequence[str],
    settings: RedDiff,
    baselines: Baselines,
    sigma_y: float,
    seed: int,
    progress: Callable[..., None],
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Restore the images of a task with every method that can take it.

    Returns:
        A row a method, and the images by method, the clean ones first.
    """
    rows, shown = [], {"clean": task.clean}
    seeds = range(seed, seed + len(task.y))
    for method in methods:
        if not can(method, task.operator, sigma_y):
            continue
        found = restore(
            task.prior,
            task.operator,
            task.y,
            method,
            settings=settings,
            baselines=baselines,
            sigma_y=sigma_y,
            seeds=seeds,
            progress=progress,
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
