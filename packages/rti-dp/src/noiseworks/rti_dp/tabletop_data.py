"""The testbed `tabletop` for the commands: tables, recorded episodes and pictures; needs the extra [bench]."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.protocols import BatchEnv

RECORDED = "testbed:tabletop"
FRAME_MS, SCALE, COLUMNS = 100, 3, 6


def make_env(num_envs: int, *, disturb: bool = False, latency: int = 0) -> BatchEnv:
    """Return tables that step together.

    Raises:
        InputError: When the testbeds are not installed or a number is out of range.
    """
    try:
        from noiseworks.bench.testbeds.tabletop import TabletopBatch
    except ModuleNotFoundError as error:
        raise InputError("the environment tabletop needs: pip install 'noiseworks-rti-dp[bench]'") from error
    return TabletopBatch(num_envs, disturb=disturb, latency=latency)


def load_episodes(data: str, seed: int = 0) -> Episodes:
    """Return the episodes of an npz file, or demonstrations on the table for `testbed:tabletop`."""
    if data != RECORDED:
        return Episodes.load(data)
    from noiseworks.bench.testbeds.tabletop import demonstrations

    return demonstrations(4, seed)


def film(observations: np.ndarray) -> list[np.ndarray]:
    """Return frames that show episodes side by side; an episode that is over keeps its last picture.

    Args:
        observations: [E, S, 33], NaN after an episode's end.

    Returns:
        S frames, uint8 [rows H, columns W, 3].
    """
    from noiseworks.bench.testbeds.tabletop import render

    lengths = np.isfinite(observations[..., 0]).sum(1)
    tiles = [
        render(episode[np.minimum(np.arange(lengths.max()), length - 1), :21])
        for episode, length in zip(observations, lengths.tolist(), strict=True)
    ]
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=2) for i in range(0, len(tiles), columns)]
    table = np.concatenate(rows, axis=1)
    return list(table.repeat(SCALE, axis=1).repeat(SCALE, axis=2))


def write_webp(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write frames uint8 [H, W, 3] as an animated WebP file that stays on its last frame for a second."""
    import io

    from noiseworks.core.artifacts import atomic_write
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    duration = [FRAME_MS] * (len(images) - 1) + [1000]
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=duration, loop=0, quality=80
    )
    atomic_write(path, buffer.getvalue())
