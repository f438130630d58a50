"""Testbed `drive`: junctions, curves, merges and blocked lanes, traffic replayed as it was, and an expert's plans.

A scene is a pure function of (seed, index). At junctions and blocked lanes several routes are right, and the expert
takes one of them at random: what a planner that averages gets wrong.
"""

from noiseworks.bench.testbeds.drive.expert import Labelled, label, of_scenes
from noiseworks.bench.testbeds.drive.folders import read_folder, write_folder
from noiseworks.bench.testbeds.drive.generating import TEMPLATES, Drawn, draw, make_scenes
from noiseworks.bench.testbeds.drive.observing import CHANNELS, EXTENT, observe, rasterise, status

__all__ = [
    "CHANNELS",
    "EXTENT",
    "TEMPLATES",
    "Drawn",
    "Labelled",
    "draw",
    "label",
    "make_scenes",
    "observe",
    "of_scenes",
    "rasterise",
    "read_folder",
    "status",
    "write_folder",
]
