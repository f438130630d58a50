"""Planners whose scores are known: the expert, constant velocity, standing still."""

from typing import TYPE_CHECKING

import numpy as np
from noiseworks.kits.driving import score_plans

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled


def sanity(labelled: "Labelled") -> dict[str, float]:
    """Return the PDM scores of the three, means over the scenes."""
    times = 0.5 * np.arange(1, 9)
    going = np.zeros_like(labelled.plans)
    going[..., 0] = labelled.scenes.speed[:, None] * times
    found = {"expert": labelled.plans, "constant velocity": going, "standing still": np.zeros_like(going)}
    return {
        name: float(score_plans(plans[:, None], labelled.scenes, labelled.reference).score.mean())
        for name, plans in found.items()
    }
