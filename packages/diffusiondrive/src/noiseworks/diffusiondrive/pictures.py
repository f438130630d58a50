"""Scenes with all modes of a planner, from above."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.diffusiondrive.plans import Plans
from noiseworks.kits.driving import draw_scene, rollout

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled

SCENES, STRIDE = 6, 4  # of the film; steps of 0.1 s between two of its frames


def picture(
    labelled: "Labelled", plans: Plans, index: int, time: int = 0, ego: np.ndarray | None = None
) -> np.ndarray:
    """Return one scene with the modes (the chosen one strong) and the expert's plan in green, uint8 [H, W, 3].

    Args:
        labelled: The scenes.
        plans: Of all of them.
        index: Which one.
        time: Steps of 0.1 s after the start.
        ego: Its pose then, [3].
    """
    modes, scores = plans.poses[index].numpy(), plans.scores[index].numpy()
    return draw_scene(labelled.scenes, index, modes, scores, labelled.plans[index], time=time, ego=ego)


def film(labelled: "Labelled", plans: Plans, path: Path) -> None:
    """Write an animated WebP of the scenes with most routes, one after the other: the ego drives its chosen plan."""
    from noiseworks.kits.policies.video import write_video

    scenes = labelled.scenes
    order = np.argsort(-scenes.admissible.sum(axis=1), kind="stable")[:SCENES]
    driven = rollout(
        plans.best[order].double().numpy(), scenes.speed[order], scenes.acceleration[order]
    ).poses
    write_video(
        [
            picture(labelled, plans, int(index), time, way[time])
            for index, way in zip(order, driven, strict=True)
            for time in range(0, len(way), STRIDE)
        ],
        path,
    )


def grid(labelled: "Labelled", plans: Plans, path: Path, columns: int = 4) -> None:
    """Write a picture of the scenes with most routes, in two rows."""
    from PIL import Image

    order = np.argsort(-labelled.scenes.admissible.sum(axis=1), kind="stable")[: 2 * columns]
    tiles = [picture(labelled, plans, int(index)) for index in order]
    rows = [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape])).save(path)
