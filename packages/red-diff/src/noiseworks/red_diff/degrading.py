"""From the options of a task to its operator."""

from pathlib import Path

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.red_diff import operators as ops
from noiseworks.red_diff.options import Degradation
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def operator_of(task: Degradation, shape: tuple[int, int, int]) -> ops.Operator:
    """Return the operator of a task on images of a shape (C, H, W).

    Raises:
        InputError: When the task does not fit the shape.
    """
    channels, height, width = shape
    match task.task:
        case "inpaint":
            mask = random_mask(task, (height, width)) if task.mask is None else read_mask(task.mask)
            if mask.shape != (height, width):
                raise InputError(f"the mask is {tuple(mask.shape)} and images {(height, width)}")
            return ops.Inpainting(mask, channels)
        case "box":
            mask = torch.ones(height, width, dtype=torch.bool)
            mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = False
            return ops.Inpainting(mask, channels)
        case "denoise":
            return ops.Inpainting(torch.ones(height, width), channels)
        case "average":
            return ops.BlockAverage(shape, task.factor)
        case "bicubic":
            return ops.bicubic(shape, task.factor)
        case "deblur":
            return ops.blur(shape, ops.gaussian_taps(task.taps, task.blur_sigma))
        case "uniform":
            return ops.blur(shape, torch.ones(task.taps))
        case "motion":
            return ops.motion_blur(shape, task.taps)
        case "color":
            return ops.Gray(shape, [1 / channels] * channels)
        case "fourier":
            return ops.Fourier(shape, random_mask(task, (height, width)))
        case "sensing":
            return ops.compressed_sensing(
                shape, max(1, round(task.keep * torch.Size(shape).numel())), task.draw
            )
        case "hdr":
            return ops.HighDynamicRange(shape)
    return ops.PhaseRetrieval(shape)


def random_mask(task: Degradation, side: tuple[int, int]) -> Tensor:
    """Return a mask `[H, W]` that keeps a share of the places, and always the first (frequency 0)."""
    count = side[0] * side[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(task.draw))
    mask = torch.zeros(count, dtype=torch.bool)
    mask[order[: max(1, round(task.keep * count))]] = True
    mask[0] |= task.task == "fourier"
    return mask.reshape(side)


def read_image(path: Path) -> Tensor:
    """Return an image file as `[1, 3, H, W]` in [-1, 1].

    Raises:
        InputError: When it is no image.
    """
    return torch.from_numpy(_pixels(path, "RGB").copy()).permute(2, 0, 1)[None].mul(2).sub(1)


def read_mask(path: Path) -> Tensor:
    """Return an image file as a mask `[H, W]`, true where it is brighter than half."""
    return torch.from_numpy(_pixels(path, "L").copy()) > 0.5


def _pixels(path: Path, mode: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode), np.float32) / 255
    except FileNotFoundError as error:
        raise InputError(f"no image at {path}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is no image that can be read") from error
