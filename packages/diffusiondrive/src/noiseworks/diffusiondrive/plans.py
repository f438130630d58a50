"""What planners return, and how alike their plans are."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RASTER, HALF_WIDTH = 0.25, 2.297 / 2  # metres


class Plans(NamedTuple):
    """What a planner proposes.

    Attributes:
        poses: x forward, y left, heading, metres and radians, [B, N, 8, 3].
        scores: Logits, [B, N].
        calls: Calls of the decoder.
    """

    poses: Tensor
    scores: Tensor
    calls: int

    @property
    def best(self) -> Tensor:
        """The plan of highest score, [B, 8, 3]."""
        return self.poses[torch.arange(len(self.poses)), self.scores.argmax(-1)]


def diversity(plans: np.ndarray) -> float:
    """Return D = 1 - mean_i area(i) / area(union) of the footprints of plans (section 4.1).

    A footprint is the line from the origin through a plan's points, half the vehicle's width to each side, on a
    raster of 0.25 m. Equal plans have 0, N separate ones of equal size 1 - 1/N.

    Args:
        plans: [N, T, 2 or more].
    """
    points = np.asarray(plans, np.float64)[..., :2]
    lines = np.concatenate((np.zeros_like(points[:, :1]), points), axis=1)
    low, high = lines.min(axis=(0, 1)) - HALF_WIDTH, lines.max(axis=(0, 1)) + HALF_WIDTH
    axes = [np.arange(a + RASTER / 2, b + RASTER / 2, RASTER) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    masks = []
    for line in lines:
        start, step = line[:-1], np.diff(line, axis=0)
        share = ((grid - start) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12)
        gap = grid - start - np.clip(share, 0, 1)[..., None] * step
        masks.append((gap**2).sum(-1).min(axis=1) <= HALF_WIDTH**2)
    inside = np.stack(masks)
    return float(1 - inside.sum(axis=1).mean() / inside.any(axis=0).sum())
