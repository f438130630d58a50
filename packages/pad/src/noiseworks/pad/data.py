"""Recordings that the commands name: a folder of the user's, or the testbed `tabletop` through its camera."""

from typing import TYPE_CHECKING

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.core.models import testbed
from noiseworks.kits.policies.options import TABLETOP
from noiseworks.pad.options import Demonstrations, Video
from noiseworks.pad.windows import Recording

if TYPE_CHECKING:
    from noiseworks.kits.policies.chunking import Episodes

METHOD = "pad"
FIRST_VIDEO_SEED = 100  # of the table's video; demonstrations have lower ones


def load_demonstrations(source: Demonstrations) -> Recording:
    """Return demonstrations: a folder's, or the table's.

    Raises:
        InputError: When they are missing or have no poses.
    """
    if source.data != TABLETOP:
        found = Recording.load(source.data)
        if found.poses is None:
            raise InputError(f"{source.data} lacks poses.npy: name it as video, or add the poses")
        return found
    return table_recording(
        source.episodes, source.data_seed, source.image_size, source.tasks, depth=source.depth_maps
    )


def load_video(source: Video, demonstrations: Demonstrations) -> Recording | None:
    """Return video: a folder's, the table's in other episodes of the same tasks, or None.

    Raises:
        InputError: When it is missing.
    """
    if source.video is None:
        return None
    if source.video != TABLETOP:
        return Recording.load(source.video)
    seed = FIRST_VIDEO_SEED + demonstrations.data_seed
    return table_recording(source.video_episodes, seed, demonstrations.image_size, demonstrations.tasks)


def table_recording(
    episodes: int, seed: int, size: int, tasks: tuple[int, ...], *, depth: bool = False
) -> Recording:
    """Return solved episodes of the table's experts as its camera saw them, with a wording of the task each.

    Args:
        episodes: Of each task.
        seed: Which ones, 0 to 999.
        size: Side of the pictures: 32, 48 or 64.
        tasks: Task ids.
        depth: Whether heights are recorded as well.
    """
    table = testbed(TABLETOP, needs=METHOD)
    found = table.demonstrations(episodes, seed, tasks=tuple(tasks))
    states = found.obs[:, : table.STATE_DIM]
    wording = np.random.default_rng([seed, 2]).integers(
        table.text_embeddings().shape[1], size=len(found.tasks)
    )
    return Recording(
        np.ascontiguousarray(table.render(states, size).transpose(0, 3, 1, 2)),
        table.text_embeddings()[found.tasks, wording].astype(np.float32),
        found.ends,
        reached_poses(found, table.SPEED),
        np.ascontiguousarray(table.render_depth(states, size).transpose(0, 3, 1, 2)) if depth else None,
    )


def reached_poses(episodes: "Episodes", speed: float) -> np.ndarray:
    """Return poses (x, y, gripper) of all steps and, after each episode's, the one that its last action leads to.

    Args:
        episodes: Of the table.
        speed: How far a velocity of 1 moves in a step.
    """
    parts, first = [], 0
    for end in episodes.ends.tolist():
        own, last = episodes.obs[first:end, :3], episodes.actions[end - 1]
        moved = np.clip(own[-1, :2] + speed * np.clip(last[:2], -1, 1), -1, 1)
        parts += [own, np.append(moved, 1.0 if last[2] > 0 else -1.0)[None].astype(np.float32)]
        first = end
    return np.concatenate(parts).astype(np.float32)
