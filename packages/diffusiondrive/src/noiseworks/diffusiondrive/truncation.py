"""Truncated diffusion (section 3.2): anchors with a little noise, and the few levels at which they are denoised."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.diffusiondrive.options import Denoising
from torch import Tensor

STEPS = 1000
BETAS = (1e-4, 2e-2)  # not Stable Diffusion's: the range of diffusers' DDIM
TRAIN_LEVELS = 50
REFERENCE_START = 8
LEVELS = 20  # that the S calls share
NAVSIM_OFFSET, NAVSIM_RANGE = (1.2, 20.0), (56.9, 46.0)
MARGIN = 0.02


def alphas_cumprod() -> Tensor:
    """Return abar_t of the scaled-linear schedule, float64 [1000]."""
    betas = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class Normalizer:
    """n(x) = 2 (x + offset) / range - 1 of each coordinate.

    Attributes:
        offset: Of x and y, metres.
        range: Likewise.
    """

    offset: tuple[float, float]
    range: tuple[float, float]

    @classmethod
    def navsim(cls) -> "Normalizer":
        """Return the constants of the released model."""
        return cls(NAVSIM_OFFSET, NAVSIM_RANGE)

    @classmethod
    def fit(cls, plans: np.ndarray) -> "Normalizer":
        """Return the range of plans [..., 2 or more], and 2 % to each side."""
        points = np.asarray(plans, np.float64)[..., :2].reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        spread = np.maximum(high - low, 1e-3)
        low, high = low - MARGIN * spread, high + MARGIN * spread
        return cls(tuple((-low).tolist()), tuple((high - low).tolist()))

    def normalize(self, points: Tensor) -> Tensor:
        """Return points [..., 2] of metres in units of the schedule."""
        return 2 * (points + points.new_tensor(self.offset)) / points.new_tensor(self.range) - 1

    def denormalize(self, points: Tensor) -> Tensor:
        """Return points [..., 2] in metres."""
        return (points + 1) / 2 * points.new_tensor(self.range) - points.new_tensor(self.offset)


def fit_anchors(plans: np.ndarray, count: int = 20, seed: int = 0) -> Tensor:
    """Return the means of `count` clusters of plans, float32 [count, T, 2]: k-means++, the best of 10 starts.

    They are sorted by the angle of their ends, so that an index means the same in every run.

    Args:
        plans: [B, T, 2 or more], metres.
        count: Anchors N.
        seed: Of the starts.

    Raises:
        InputError: When there are fewer different plans than anchors.
    """
    from sklearn.cluster import KMeans

    points = np.asarray(plans, np.float64)[..., :2]
    flat = points.reshape(len(points), -1)
    if len(np.unique(flat, axis=0)) < count:
        raise InputError(f"{count} anchors need at least as many different plans, got {len(flat)} plans")
    found = KMeans(count, n_init=10, random_state=seed).fit(flat).cluster_centers_
    ends = found.reshape(count, -1, 2)
    order = np.argsort(np.arctan2(ends[:, -1, 1], ends[:, -1, 0]), kind="stable")
    return torch.as_tensor(ends[order], dtype=torch.float32)


def check_anchors(anchors: Tensor, normalizer: Normalizer, horizon: int) -> Tensor:
    """Return anchors, float32 [N, T, 2], or refuse them.

    Raises:
        InputError: When they are of another horizon, not finite, or outside of the normaliser's range, where they
            would be clamped.
    """
    if anchors.ndim != 3 or tuple(anchors.shape[1:]) != (horizon, 2):
        raise InputError(f"anchors must be [N, {horizon}, 2] for this model, got {list(anchors.shape)}")
    if not bool(anchors.isfinite().all()):
        raise InputError("the anchors hold NaN or infinity")
    if bool((normalizer.normalize(anchors.double()).abs() > 1 + 1e-6).any()):
        raise InputError("anchors lie outside of the normaliser's range; fit it to plans that hold them")
    return anchors.float()


def add_noise(points: Tensor, level: Tensor | int, noise: Tensor) -> Tensor:
    """Return sqrt(abar_t) x + sqrt(1 - abar_t) eps of normalised points (eq. 5).

    Args:
        points: x, [B, ..., 2].
        level: t, an integer or int64 [B].
        noise: eps, shaped like `points`.
    """
    bar = alphas_cumprod().to(points.device)[torch.as_tensor(level, device=points.device)].to(points.dtype)
    bar = bar.reshape(-1, *[1] * (points.ndim - 1))
    return bar.sqrt() * points + (1 - bar).sqrt() * noise


def ddim(x: Tensor, clean: Tensor, level: int, to: int) -> Tensor:
    """Return the point that DDIM (eta 0) moves to from level `level`; below level 0 all noise is gone.

    Args:
        x: Noisy points.
        clean: Predicted clean points, clipped to [-1, 1] here.
        level: Of x.
        to: Level to go to; -1 for the clean points.
    """
    bars = alphas_cumprod()
    now, then = float(bars[level]), 1.0 if to < 0 else float(bars[to])
    noise = (x - now**0.5 * clean) / (
        1 - now
    ) ** 0.5  # of the prediction as it is, as diffusers' scheduler has it
    return then**0.5 * clean.clamp(-1, 1) + (1 - then) ** 0.5 * noise


def levels_of(steps: int) -> list[int]:
    """Return the levels at which the network is called: round(20 i / S), descending to 0."""
    check_number("steps", steps, low=1, high=LEVELS, integer=True)
    return [round(LEVELS * i / steps) for i in range(steps - 1, -1, -1)]


def start_of(denoising: Denoising) -> int:
    """Return the level of the noise on the anchors."""
    if denoising.start is not None:
        return denoising.start
    return REFERENCE_START if denoising.stepping == "reference" else levels_of(denoising.steps)[0]


def next_level(levels: Sequence[int], index: int, stepping: str) -> int:
    """Return the level that the call at `levels[index]` moves to."""
    if stepping == "reference":
        return levels[index] - 1
    return levels[index + 1] if index + 1 < len(levels) else -1
