"""The testbeds' environments, demonstrations and pictures for commands; a method's extra [bench] brings them."""

from collections.abc import Sequence

import numpy as np
from noiseworks.core.models import testbed
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.options import SHIPPED, TABLETOP
from noiseworks.kits.policies.protocols import BatchEnv


def make_env(
    name: str,
    num_envs: int,
    *,
    needs: str,
    disturb: bool = False,
    latency: int = 0,
    image_size: int | None = None,
    depth: bool = False,
) -> BatchEnv:
    """Return environments that step together; see `noiseworks.bench.testbeds.environments.make_env`.

    Args:
        name: `tabletop`, `metaworld:TASK`, `pusht`, `pusht:keypoints` or `pusht:pixels`.
        num_envs: How many.
        needs: The method that asks, for the sentence that names its extra.
        disturb: Whether free discs, or the T, jump now and then.
        latency: Steps by which an action acts late on the table.
        image_size: Side of the pictures that the table shows beside its state; None for none.
        depth: Whether it shows depth maps as well.

    Raises:
        InputError: When the testbeds are not installed, the name is unknown or a number is out of range.
    """
    rooms = testbed("environments", needs=needs)
    cameras = {"image_size": image_size, "depth": depth}
    return rooms.make_env(name, num_envs, disturb=disturb, latency=latency, **cameras)


def load_episodes(
    data: str, *, needs: str, episodes: int, others: int | None = None, seed: int = 0
) -> Episodes:
    """Return the episodes of an npz file, or an expert's of `testbed:tabletop` or `testbed:metaworld:TASK`.

    Args:
        data: The file or the testbed.
        needs: The method that asks.
        episodes: Demonstrations of each task of the table.
        others: Demonstrations of another testbed, which has one task; by default as many.
        seed: Which demonstrations.

    Raises:
        InputError: When the file is missing or unfit, or the environment has no expert.
    """
    if not data.startswith(SHIPPED):
        return Episodes.load(data)
    name = data.removeprefix(SHIPPED)
    count = episodes if name == TABLETOP or others is None else others
    return testbed("environments", needs=needs).load_demonstrations(name, count, seed)


def film(observations: np.ndarray, *, needs: str) -> Sequence[np.ndarray]:
    """Return frames of recorded episodes on the table, [E, S, 33], side by side."""
    return testbed("tabletop", needs=needs).film(observations)
