"""Camera images as training data, and the testbed `tabletop` as an image policy sees it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.core.errors import InputError
from torch import Tensor

PREFIX = "images-"
TABLE_CAMERA, STATE_DIM = "top", 21


class PictureRows:
    """One image for each training window, read from the array (in memory or on disk) when a batch asks for it.

    Args:
        images: uint8 [M, 3, H, W], one for each step of the episodes.
        steps: The current step of each window, int64 [W].
    """

    def __init__(self, images: np.ndarray, steps: np.ndarray) -> None:
        self.images, self.steps = images, steps

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.steps)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return images float32 [B, 1, 3, H, W] in [0, 1] of windows [B]."""
        chosen = self.images[self.steps[rows.numpy()]]
        return torch.from_numpy(chosen).float().div_(255)[:, None]


def load_images(folder: Path, steps: int) -> dict[str, np.ndarray]:
    """Return the arrays `images-<camera>.npy` of a folder, left on disk.

    Args:
        folder: The folder of demonstrations.
        steps: Steps M of the episodes.

    Raises:
        InputError: When there is none, or one is not uint8 [M, 3, H, W].
    """
    found = {}
    for path in sorted(folder.glob(f"{PREFIX}*.npy")):
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:2] != (steps, 3):
            raise InputError(
                f"{path} must hold uint8 images [{steps}, 3, H, W], one a step, got {images.dtype} "
                f"{list(images.shape)}"
            )
        found[path.stem.removeprefix(PREFIX)] = images
    if not found:
        raise InputError(f"{folder} lacks images: add {PREFIX}<camera>.npy, or train with encoder=state")
    sizes = {images.shape[2:] for images in found.values()}
    if len(sizes) > 1 or (size := sizes.pop())[0] != size[1]:
        raise InputError(f"{folder}: images must be square and of one size, got {sorted(sizes)}")
    return found


def table_views(module: Any, obs: Tensor, size: int) -> dict[str, Tensor]:
    """Return what an image policy sees of the testbed: `obs` and, beside it, a picture, the goal and the state.

    Args:
        module: The testbed.
        obs: Its observations [N, 33].
        size: Side S of the pictures in pixels.

    Returns:
        `obs`, `top` [N, 3, S, S] in [0, 1], `goal` [N, G] and `state` [N, 21].
    """
    rows = obs.numpy()
    picture = torch.from_numpy(render_table(module, rows, size)).float().div_(255)
    goals = torch.from_numpy(np.asarray(module.text_embeddings(), np.float32))
    goal = goals[torch.from_numpy(rows[:, STATE_DIM:].argmax(1)), 0]
    return {"obs": obs, TABLE_CAMERA: picture, "goal": goal, "state": obs[:, :STATE_DIM]}


def render_table(module: Any, obs: np.ndarray, size: int) -> np.ndarray:
    """Return pictures uint8 [N, 3, S, S] of the testbed's observations [N, 33]."""
    return np.ascontiguousarray(module.render(obs[:, :STATE_DIM], size).transpose(0, 3, 1, 2))


def windows_of_images(
    images: Mapping[str, np.ndarray], goals: Tensor, tasks: np.ndarray, index: np.ndarray
) -> dict[str, Any]:
    """Return the observations of training windows: one `PictureRows` a camera, and `goal` [W, 1, G].

    A window keeps the wording that it drew.

    Args:
        images: Images of all steps by camera.
        goals: Embeddings [N, wordings, G].
        tasks: Task of each step, int64 [M].
        index: Current step of each window, int64 [W].
    """
    wording = np.random.default_rng(0).integers(goals.shape[1], size=len(index))
    goal = goals[torch.from_numpy(tasks[index]), torch.from_numpy(wording)]
    rows: dict[str, Any] = {name: PictureRows(value, index) for name, value in images.items()}
    return rows | {"goal": goal[:, None]}
