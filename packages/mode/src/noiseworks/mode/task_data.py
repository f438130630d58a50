"""Demonstrations and goals that the commands name: a folder of the user's, or the testbed `tabletop`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed
from noiseworks.kits.policies.chunking import ChunkSpec, Episodes, window_indices, windows
from noiseworks.kits.policies.options import TABLETOP
from noiseworks.mode.cameras import TABLE_CAMERA, load_images, render_table, windows_of_images
from noiseworks.mode.config import Demonstrations
from torch import Tensor

EPISODES_NAME, GOALS_NAME = "episodes.npz", "goals.npy"


class TaskData(NamedTuple):
    """What training reads.

    Attributes:
        episodes: Demonstrations; an observation is the state followed by the task's one-hot.
        goals: Goal embeddings of the tasks, float32 [N, W, G]: N tasks in W wordings.
        images: Images of every step by camera, uint8 [M, 3, H, W]; empty where policies see states.
    """

    episodes: Episodes
    goals: Tensor
    images: Mapping[str, np.ndarray] = MappingProxyType({})

    @property
    def state_dim(self) -> int:
        """Width of the state."""
        return self.episodes.obs.shape[1] - len(self.goals)

    def table(self, chunk: int) -> dict[str, Any]:
        """Return training windows of every step.

        `action` [W, chunk, A], with `obs` [W, 1, S + N] or, where there are images, those of the cameras, `goal`
        [W, 1, G] and `state` [W, 1, S].
        """
        spec = ChunkSpec(chunk, 1, chunk)
        made: dict[str, Any] = windows(self.episodes, spec, pad_after=chunk - 1)
        if not self.images:
            return made
        index = window_indices(self.episodes.ends, spec, chunk - 1)[:, 0]
        tasks = self.episodes.obs[:, self.state_dim :].argmax(1)
        seen = windows_of_images(self.images, self.goals, tasks, index)
        return seen | {"state": made["obs"][..., : self.state_dim], "action": made["action"]}


def load_task_data(source: Demonstrations, *, image_size: int | None = None) -> TaskData:
    """Return the demonstrations of a folder, or of the testbed.

    Args:
        source: `tabletop`, or a folder with `episodes.npz` (obs, actions, ends, tasks; obs is the state and the
            task's one-hot), `goals.npy` (embeddings [tasks, wordings, width]) and, for image policies,
            `images-<camera>.npy` (uint8 [steps, 3, H, W]).
        image_size: Asks for images too; side in pixels of the testbed's (32, 48 or 64).

    Raises:
        InputError: When files are missing or do not fit.
    """
    if source.data == TABLETOP:
        parts = testbed(TABLETOP, needs="mode")
        goals = torch.from_numpy(parts.text_embeddings()).float()
        found = parts.demonstrations(source.demonstrations or 200)
        images = {} if image_size is None else {TABLE_CAMERA: render_table(parts, found.obs, image_size)}
        return TaskData(found, goals, images)
    folder = Path(source.data)
    if not (folder / GOALS_NAME).is_file():
        raise InputError(f"{folder} lacks {GOALS_NAME}: goal embeddings [tasks, wordings, width]")
    goals = torch.from_numpy(np.load(folder / GOALS_NAME, allow_pickle=False)).float()
    data = TaskData(Episodes.load(folder / EPISODES_NAME), goals)
    if goals.ndim != 3 or data.state_dim < 1:
        raise InputError(
            f"{folder}: goals {list(goals.shape)} must be [tasks, wordings, width], and observations of width "
            f"{data.episodes.obs.shape[1]} a state followed by the tasks' one-hot"
        )
    return data if image_size is None else data._replace(images=load_images(folder, len(data.episodes.obs)))
