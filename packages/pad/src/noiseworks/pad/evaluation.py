"""How good a model's futures are: poses, pictures, and whether the two say the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from noiseworks.core.models import testbed
from noiseworks.kits.images import peak_signal_to_noise
from noiseworks.kits.pictures import grid, to_pixels
from noiseworks.pad.model import PAD, Future
from noiseworks.pad.options import Judging, Sampling
from noiseworks.pad.windows import Recording, Windows
from torch import Tensor

BATCH = 200


@dataclass(frozen=True)
class Judged:
    """Futures of windows, and what happened.

    Attributes:
        future: What the model predicted.
        poses: What happened, [B, P, D].
        images: The present, then the frames that followed, [B, 1 + k, C, S, S].
        frames: Which of the poses belong to the frames, [k].
        position: How many entries of a pose are a position.
        pixels: Whether images are pixels.
    """

    future: Future
    poses: Tensor
    images: Tensor
    frames: list[int]
    position: int
    pixels: bool

    @property
    def pose_error(self) -> Tensor:
        """Distance of the predicted from the true position at each frame, [B, k] in the data's units."""
        away = (self.future.poses - self.poses)[..., : self.position].norm(dim=-1)
        return away[:, self.frames]

    @property
    def psnr(self) -> Tensor | None:
        """PSNR of each predicted frame in dB, [B, k]; None where no pixels are predicted."""
        if self.future.images is None or not self.pixels:
            return None
        shape = self.images[:, 1:].shape[:2]
        found = peak_signal_to_noise(self.images[:, 1:].flatten(0, 1), self.future.images.flatten(0, 1))
        return found.unflatten(0, shape)

    def summary(self) -> dict[str, Any]:
        """Return the means for JSON."""
        psnr = self.psnr
        error = [round(value, 4) for value in self.pose_error.mean(0).tolist()]
        found: dict[str, Any] = {"windows": len(self.poses), "pose_error": error}
        return found if psnr is None else found | {"psnr": [round(v, 2) for v in psnr.mean(0).tolist()]}


def judge(
    model: PAD, recording: Recording, sampling: Sampling, judging: Judging, position: int = 2
) -> Judged:
    """Return a model's futures of windows of a recording that it did not learn from.

    Args:
        model: The model.
        recording: With poses.
        sampling: Solver and steps.
        judging: How many windows, and the noise.
        position: How many entries of a pose are a position.

    Raises:
        InputError: When the recording does not fit the model.
    """
    shapes, window = model.shapes, model.window
    rows = Windows(recording, window, shapes.pose_dim, depth=shapes.depth or None)
    chosen = np.linspace(0, len(rows) - 1, min(judging.windows, len(rows))).round().astype(int)
    generator = torch.Generator().manual_seed(judging.noise_seed)
    futures, poses, images = [], [], []
    for first in range(0, len(chosen), BATCH):
        batch = rows.__getitems__(chosen[first : first + BATCH].tolist())
        _, clean, _ = model.targets(batch)
        futures.append(model.predict(clean, batch["goal"], sampling, generator))
        poses.append(batch["poses"].unflatten(1, (-1, shapes.pose_dim)))
        frames = batch["frames"].unflatten(1, (window.frames, shapes.channels))
        images.append(torch.cat((batch["image"][:, None], frames), dim=1))
    every = window.stride if window.dense else 1
    joined = Future(*(None if part[0] is None else torch.cat(part) for part in zip(*futures, strict=True)))
    return Judged(
        joined,
        torch.cat(poses),
        torch.cat(images),
        [every * (i + 1) - 1 for i in range(window.frames)],
        position,
        shapes.pixels,
    )


def consistency(judged: Judged) -> np.ndarray:
    """Return how far the gripper in a predicted picture of the table is from the predicted pose, in pixels [B, k].

    NaN where no gripper can be seen.
    """
    table = testbed("tabletop", needs="pad")
    images = judged.future.images
    seen = table.read_gripper(_pixels(images.flatten(0, 1))).reshape(*images.shape[:2], 2)
    poses = judged.future.poses[:, judged.frames, :2].double().numpy()
    return np.linalg.norm(seen - poses, axis=-1) * images.shape[-1] / 2


def picture(judged: Judged, count: int = 6, scale: int = 3) -> np.ndarray:
    """Return what followed and what was predicted, window after window below each other, uint8 [H, W, 3].

    Args:
        judged: Of a model that predicts pixels.
        count: Windows, evenly spread.
        scale: How often a pixel is repeated.
    """
    rows = np.linspace(0, len(judged.poses) - 1, min(count, len(judged.poses))).round().astype(int)
    lines = {}
    for number, row in enumerate(rows.tolist(), start=1):
        lines[f"{number} true"] = _pixels(judged.images[row])
        lines[f"{number} predicted"] = _pixels(torch.cat((judged.images[row, :1], judged.future.images[row])))
    captions = ["now", *(f"+{i + 1}" for i in judged.frames)]
    return grid(lines, captions=captions, scale=scale)


def _pixels(images: Tensor) -> np.ndarray:
    return to_pixels((images + 1) / 2)
