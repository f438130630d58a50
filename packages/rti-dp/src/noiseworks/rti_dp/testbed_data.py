"""The testbeds' environments, episodes and pictures for the commands; needs the extra [bench]."""

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.protocols import BatchEnv

TABLETOP = "tabletop"
DEMONSTRATIONS = "testbed:tabletop"


def make_env(name: str, num_envs: int, *, disturb: bool = False, latency: int = 0) -> BatchEnv:
    """Return environments that step together; see `noiseworks.bench.testbeds.environments.make_env`.

    Raises:
        InputError: When the testbeds are not installed, the name is unknown or a number is out of range.
    """
    try:
        from noiseworks.bench.testbeds import environments
    except ModuleNotFoundError as error:
        raise InputError(f"the environment {name} needs: pip install 'noiseworks-rti-dp[bench]'") from error
    return environments.make_env(name, num_envs, disturb=disturb, latency=latency)


def load_episodes(data: str, seed: int = 0) -> Episodes:
    """Return the episodes of an npz file, or demonstrations on the table for `testbed:tabletop`."""
    if data != DEMONSTRATIONS:
        return Episodes.load(data)
    from noiseworks.bench.testbeds.tabletop import demonstrations

    return demonstrations(4, seed)


def film(observations: np.ndarray) -> list[np.ndarray]:
    """Return frames of recorded episodes on the table, [E, S, 33], side by side."""
    from noiseworks.bench.testbeds import tabletop

    return tabletop.film(observations)
