"""Animated pictures of episodes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.core.output import check_file

FRAME_MS, LAST_MS = 100, 1000


def check_video(path: str | Path) -> Path:
    """Return the path of an animation that is going to be written.

    Raises:
        InputError: When its name does not end in .webp or nothing can be written there.
    """
    path = Path(path)
    if path.suffix != ".webp":
        raise InputError(f"a video is an animated WebP: name a file ending in .webp, got {path.name!r}")
    return check_file(path)


def write_video(frames: Sequence[np.ndarray], path: str | Path) -> None:
    """Write frames uint8 [H, W, 3] as an animated WebP at 10 frames a second that rests on its last one.

    Raises:
        InputError: When there is no frame.
    """
    from PIL import Image

    if not len(frames):
        raise InputError("a video needs at least one frame")
    images = [Image.fromarray(frame) for frame in frames]
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=80
    )
    atomic_write(Path(path), buffer.getvalue())
