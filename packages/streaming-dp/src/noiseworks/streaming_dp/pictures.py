"""Episodes of a stream on the table, with the paths that its buffers hold."""

from collections.abc import Sequence

import numpy as np
import torch
from noiseworks.core.models import testbed
from noiseworks.kits.policies.data import make_env
from noiseworks.kits.policies.options import TABLETOP
from noiseworks.streaming_dp.policy import StreamingPolicy

SPEED, SIZE, SCALE = 0.06, 64, 3


def record_stream(
    policy: StreamingPolicy, tasks: tuple[int, ...], seed: int, *, disturb: bool = False
) -> list[np.ndarray]:
    """Return frames of one episode of each task, with the paths that the buffers hold.

    Args:
        policy: Made for as many environments as there are tasks.
        tasks: Task ids.
        seed: Of the episodes.
        disturb: Whether free discs jump now and then.
    """
    env, rows = make_env(TABLETOP, len(tasks), needs="streaming-dp", disturb=disturb), np.arange(len(tasks))
    env.reset(rows, np.array(tasks), np.full(len(tasks), seed))
    policy.reset(seeds=[seed] * len(tasks))
    over = np.zeros(len(tasks), bool)
    frames: tuple[list, list, list] = ([], [], [])
    scale = policy.spec.num_levels
    while not over.all():
        table = env.state()
        actions = policy.act({name: torch.from_numpy(value) for name, value in env.observe().items()}).numpy()
        memory = policy.memory.state()
        # From the current action on; the levels are those at the end of the cycle.
        plan = policy.host.normalizer.unnormalize(memory["actions"] * policy.scheduler.data_scale)[
            :, policy.spec.first :
        ].numpy()
        noise = (memory["levels"][:, policy.spec.first :].numpy() + 1) / scale
        actions[over] = 0.0
        if frames[0]:
            table[over], plan[over], noise[over] = frames[0][-1][over], 0.0, 1.0
        for kept, value in zip(frames, (table, plan, noise), strict=True):
            kept.append(value)
        result = env.step(actions)
        over |= result.terminated | result.truncated
    return film(*frames)


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
    from PIL import Image, ImageDraw

    render, frames = testbed("tabletop", needs="streaming-dp").render, []
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
