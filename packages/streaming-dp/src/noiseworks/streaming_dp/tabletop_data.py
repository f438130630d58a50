"""The testbeds' environments, training windows and pictures for the commands; needs the extra [bench]."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import ChunkSpec, Episodes, windows
from noiseworks.kits.policies.protocols import BatchEnv
from torch import Tensor

TABLETOP, SHIPPED = "tabletop", "testbed:"
RECORDED = f"{SHIPPED}{TABLETOP}"
EPISODES_PER_TASK = 200
STATE_DIM, SPEED = 21, 0.06
SIZE, SCALE = 64, 3


def make_env(name: str, num_envs: int, *, disturb: bool = False) -> BatchEnv:
    """Return environments that step together; see `noiseworks.bench.testbeds.environments.make_env`.

    Raises:
        InputError: When the testbeds are not installed or the name is unknown.
    """
    return _environments(name).make_env(name, num_envs, disturb=disturb)


def load_windows(data: str, spec: ChunkSpec, episodes_per_task: int = EPISODES_PER_TASK) -> dict[str, Tensor]:
    """Return training windows in which every step of an episode is the current one of some window.

    Args:
        data: An npz file with obs, actions, ends and tasks, `testbed:tabletop` or `testbed:metaworld:TASK`.
        spec: Shape of the windows.
        episodes_per_task: Demonstrations of each task of a testbed.
    """
    if data.startswith(SHIPPED):
        found = _environments(data).load_demonstrations(data.removeprefix(SHIPPED), episodes_per_task)
    else:
        found = Episodes.load(data)
    return windows(found, spec, pad_after=spec.horizon - spec.n_obs_steps)


def _environments(name: str) -> ModuleType:
    try:
        from noiseworks.bench.testbeds import environments
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs: pip install 'noiseworks-streaming-dp[bench]'") from error
    return environments


def film(
    states: Sequence[np.ndarray], plans: Sequence[np.ndarray], shades: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return frames of tables side by side, with the path that each buffer holds drawn on its table.

    The dots are where the buffered velocities would lead, from the next step on; the noisier a position, the
    fainter its dot.

    Args:
        states: One [E, 21] a step.
        plans: The buffers' actions [E, P, 3] in environment units, likewise.
        shades: Noise of each position, [E, P] from 0 (clean) to 1, likewise.

    Returns:
        One frame a step, uint8 [H, E W, 3].
    """
    from noiseworks.bench.testbeds.tabletop import render
    from PIL import Image, ImageDraw

    frames = []
    side = SIZE * SCALE
    for table, plan, shade in zip(states, plans, shades, strict=True):
        pictures = render(table, SIZE).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
        paths = table[:, None, :2] + np.cumsum(SPEED * np.clip(plan[..., :2], -1, 1), axis=1)
        image = Image.fromarray(np.concatenate(list(pictures), axis=1))
        draw = ImageDraw.Draw(image, "RGBA")
        for column, (path, noise) in enumerate(zip(paths, shade, strict=True)):
            for (x, y), level in zip(np.clip(path, -1, 1).tolist(), noise.tolist(), strict=True):
                centre = column * side + (x + 1) / 2 * side, (1 - y) / 2 * side
                box = [centre[0] - 3, centre[1] - 3, centre[0] + 3, centre[1] + 3]
                draw.ellipse(box, fill=(200, 30, 120, int(230 * (1 - level)) + 25))
        frames.append(np.asarray(image))
    return frames
