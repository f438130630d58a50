"""Testbed `tabletop`: a table with discs, pads, a drawer and a button, 12 tasks, and policies trained on it."""

from noiseworks.bench.testbeds.tabletop.datasets import Videos, demonstrations, load, videos
from noiseworks.bench.testbeds.tabletop.experts import Expert
from noiseworks.bench.testbeds.tabletop.rendering import render
from noiseworks.bench.testbeds.tabletop.simulation import StepResult, TabletopBatch, policy_observation
from noiseworks.bench.testbeds.tabletop.tasks import INSTRUCTIONS, instruction, text_embeddings

__all__ = [
    "INSTRUCTIONS",
    "Expert",
    "StepResult",
    "TabletopBatch",
    "Videos",
    "demonstrations",
    "instruction",
    "load",
    "policy_observation",
    "render",
    "text_embeddings",
    "videos",
]
