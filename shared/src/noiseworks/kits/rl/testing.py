"""Recordings that a user could name by mistake, for contracts."""

from pathlib import Path

import numpy as np
from noiseworks.core.artifacts import WEIGHTS_NAME
from noiseworks.kits.rl.transitions import Transitions


def mistaken_data(folder: Path) -> dict[str, Path]:
    """Write two folders of transitions beside a task of 4 observations and 2 actions, and return their paths by name.

    Args:
        folder: Where they go.

    Returns:
        `endless`, which lacks its terminals, and `narrow`, of another task: 3 observations.
    """
    from safetensors.numpy import load_file, save_file

    rng, steps = np.random.default_rng(0), 40
    for name, width in {"endless": 4, "narrow": 3}.items():
        seen = rng.normal(size=(steps + 1, width))
        actions, last = rng.uniform(-1, 1, (steps, 2)), np.arange(steps) == steps - 1
        Transitions(seen[:-1], actions, np.zeros(steps), seen[1:], last & False, last).save(folder / name)
    weights = folder / "endless" / WEIGHTS_NAME
    save_file({name: t for name, t in load_file(weights).items() if name != "terminals"}, weights)
    return {name: folder / name for name in ("endless", "narrow")}
