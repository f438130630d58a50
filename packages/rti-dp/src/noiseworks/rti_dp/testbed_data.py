"""The testbeds' environments, episodes and pictures for the commands; needs the extra [bench]."""

from types import ModuleType

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.protocols import BatchEnv

TABLETOP, SHIPPED = "tabletop", "testbed:"
EPISODES = {TABLETOP: 4}  # of each task; elsewhere there is one
OTHER_EPISODES = 20


def make_env(name: str, num_envs: int, *, disturb: bool = False, latency: int = 0) -> BatchEnv:
    """Return environments that step together; see `noiseworks.bench.testbeds.environments.make_env`.

    Raises:
        InputError: When the testbeds are not installed, the name is unknown or a number is out of range.
    """
    return _environments(name).make_env(name, num_envs, disturb=disturb, latency=latency)


def load_episodes(data: str, seed: int = 0) -> Episodes:
    """Return the episodes of an npz file, or an expert's of `testbed:tabletop` or `testbed:metaworld:TASK`.

    Raises:
        InputError: When the file is missing or unfit, or the environment has no expert.
    """
    if not data.startswith(SHIPPED):
        return Episodes.load(data)
    name = data.removeprefix(SHIPPED)
    return _environments(data).load_demonstrations(name, EPISODES.get(name, OTHER_EPISODES), seed)


def _environments(name: str) -> ModuleType:
    try:
        from noiseworks.bench.testbeds import environments
    except ModuleNotFoundError as error:
        raise InputError(f"{name} needs: pip install 'noiseworks-rti-dp[bench]'") from error
    return environments


def film(observations: np.ndarray) -> list[np.ndarray]:
    """Return frames of recorded episodes on the table, [E, S, 33], side by side."""
    from noiseworks.bench.testbeds import tabletop

    return tabletop.film(observations)
