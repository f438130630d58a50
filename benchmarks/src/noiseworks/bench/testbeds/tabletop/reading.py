"""Where the gripper is drawn: read off a picture, so that a predicted picture can be held against a predicted pose."""

import numpy as np
from noiseworks.bench.testbeds.tabletop.rendering import COLORS

WIDTH = 40.0  # grey values; the nearest other colour, the handle's, is 71 away


def read_gripper(images: np.ndarray) -> np.ndarray:
    """Return the gripper's position in pictures: the middle of the pixels that have its colour.

    Args:
        images: uint8 [N, S, S, 3], as `render` makes them.

    Returns:
        float64 [N, 2] in units of the table; NaN where nothing has the colour.
    """
    images = np.asarray(images, np.float64)
    away = ((images - COLORS.gripper) ** 2).sum(-1)
    weight = np.exp(-away / (2 * WIDTH**2 / 4))
    weight[weight < 0.01] = 0
    total = weight.sum((1, 2))
    size = images.shape[1]
    axis = (np.arange(size) + 0.5) / (size / 2) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (weight.sum(1) * axis).sum(1) / total
        y = -(weight.sum(2) * axis).sum(1) / total
    return np.stack((x, y), axis=1)
