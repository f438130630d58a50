"""Testbed `tabletop`: a table with discs, pads, a drawer and a button, 12 tasks, and policies trained on it.

`TabletopBatch` steps many tables at once; `environment.TabletopEnv` is one of them for Gymnasium.
"""

from noiseworks.bench.testbeds.batches import StepResult
from noiseworks.bench.testbeds.tabletop.datasets import Videos, demonstrations, load, videos
from noiseworks.bench.testbeds.tabletop.experts import Expert
from noiseworks.bench.testbeds.tabletop.metrics import jerk, mode_switches
from noiseworks.bench.testbeds.tabletop.reading import read_gripper
from noiseworks.bench.testbeds.tabletop.rendering import film, render, render_depth
from noiseworks.bench.testbeds.tabletop.simulation import (
    SPEED,
    STATE_DIM,
    TabletopBatch,
    hold,
    policy_observation,
)
from noiseworks.bench.testbeds.tabletop.tasks import INSTRUCTIONS, instruction, text_embeddings

__all__ = [
    "INSTRUCTIONS",
    "SPEED",
    "STATE_DIM",
    "Expert",
    "StepResult",
    "TabletopBatch",
    "Videos",
    "demonstrations",
    "film",
    "hold",
    "instruction",
    "jerk",
    "load",
    "mode_switches",
    "policy_observation",
    "read_gripper",
    "render",
    "render_depth",
    "text_embeddings",
    "videos",
]
