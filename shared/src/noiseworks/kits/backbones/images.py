"""Labelled images to train on: the bundled digits, or a file of the user's."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = "digits"


def load_images(data: str, *, needs: str, split: str = "train") -> "tuple[Tensor, Tensor]":
    """Return images and labels.

    Args:
        data: `digits` (8x8 handwritten digits), or a .npz file with `x`, images [n, h, h, c] or [n, h, h] of whole
            numbers from 0 to 255 or of numbers from -1 to 1, and `y`, labels from 0.
        needs: The method that asks, whose extra [bench] brings the digits.
        split: Of the digits, `train` or `test`; a file has none.

    Returns:
        float32 [n, c, h, h] in [-1, 1] and int64 [n].

    Raises:
        InputError: When the file is missing or does not hold that.
    """
    import numpy as np
    import torch

    if data == DIGITS:
        images, labels = testbed(DIGITS, needs=needs).load(split)
    else:
        images, labels = _read(Path(data))
    if images.dtype == np.uint8:
        images = images / 127.5 - 1
    images = images[..., None] if images.ndim == 3 else images
    tensor = torch.as_tensor(images, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
    return tensor, torch.as_tensor(labels, dtype=torch.int64)


def _read(path: Path) -> tuple:
    import numpy as np

    if not path.is_file():
        raise InputError(f"no data {str(path)!r}; name {DIGITS}, or a .npz file with images x and labels y")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no .npz file with images x and labels y: {error}") from error
    square = x.ndim in (3, 4) and x.shape[1] == x.shape[2]
    if not square or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        raise InputError(f"{path} must hold square images x and whole labels y, got {x.shape} and {y.shape}")
    finite = x.dtype.kind in "iuf" and bool(np.isfinite(x).all())
    if not finite or (x.dtype != np.uint8 and math.ceil(float(np.abs(x).max())) > 1) or y.min() < 0:
        raise InputError(f"{path} must hold images of uint8, or of numbers from -1 to 1, and labels from 0")
    return x, y
