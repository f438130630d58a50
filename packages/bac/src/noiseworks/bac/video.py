"""Episodes on the `tabletop` testbed as an animated picture, side by side."""

from pathlib import Path

import numpy as np
from noiseworks.bac.data import testbed
from noiseworks.bac.options import Episodes
from noiseworks.bac.rollout import Rollout
from noiseworks.kits.policies.video import write_video
from PIL import Image, ImageDraw

SIZE, _SCALE, _BORDER = 64, 3, 22


def write_first_episodes(report: Rollout, episodes: Episodes) -> None:
    """Write the first episode of each task side by side."""
    rows = np.arange(len(episodes.tasks)) * episodes.episodes
    write_episodes(episodes.video, *report.film(rows))


def write_episodes(
    path: Path, states: list[np.ndarray], captions: list[str], solved: list[int | None]
) -> None:
    """Write the states of a batch of environments as an animated WebP.

    Args:
        path: The file.
        states: One array [N, 21] a step.
        captions: One line for each environment.
        solved: Step at which each environment solved its task, None where it did not.
    """
    frames = [_frame(step, now, captions, solved) for step, now in enumerate(states)]
    write_video([np.asarray(frame) for frame in frames], path)


def _frame(step: int, states: np.ndarray, captions: list[str], solved: list[int | None]) -> Image.Image:
    side = SIZE * _SCALE
    pictures = testbed().render(states, SIZE)
    image = Image.new("RGB", (len(pictures) * (side + 4), side + _BORDER), "white")
    draw = ImageDraw.Draw(image)
    for column, picture in enumerate(pictures):
        x = column * (side + 4)
        image.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, _BORDER))
        done = solved[column] is not None and step >= solved[column]
        draw.text(
            (x + 3, 5),
            captions[column] + (" - solved" if done else ""),
            fill=(20, 110, 50) if done else "black",
        )
    return image
