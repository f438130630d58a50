"""Scenes with all modes of a planner, from above."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from noiseworks.diffusiondrive.plans import Plans
from noiseworks.kits.driving import draw_scene

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled

SCENES, FRAMES = 12, 10  # of the film; frames a scene, which is a second


def picture(labelled: "Labelled", plans: Plans, index: int) -> np.ndarray:
    """Return one scene with the modes (the chosen one strong) and the expert's plan in green, uint8 [H, W, 3]."""
    return draw_scene(
        labelled.scenes, index, plans.poses[index].numpy(), plans.scores[index].numpy(), labelled.plans[index]
    )


def film(labelled: "Labelled", plans: Plans, path: Path) -> None:
    """Write an animated WebP of the first scenes, one a second."""
    from noiseworks.kits.policies.video import write_video

    frames = [picture(labelled, plans, index) for index in range(min(SCENES, len(labelled)))]
    write_video([frame for frame in frames for _ in range(FRAMES)], path)


def grid(labelled: "Labelled", plans: Plans, path: Path, columns: int = 4) -> None:
    """Write a picture of the scenes with most routes, in two rows."""
    from PIL import Image

    order = np.argsort(-labelled.scenes.admissible.sum(axis=1), kind="stable")[: 2 * columns]
    tiles = [picture(labelled, plans, int(index)) for index in order]
    rows = [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape])).save(path)
