"""Testbed `maze`: a pushed body in a maze with sparse, dense or step-cost rewards, and recorded behaviour of all kinds.

`MazeBatch` steps many mazes at once; `environment.MazeEnv` and `environment.MazeVectorEnv` are Gymnasium's (the extra
`[maze]`).
"""

from noiseworks.bench.testbeds.maze.behaviours import BEHAVIOURS, Behaviour, steer
from noiseworks.bench.testbeds.maze.datasets import fingerprint, load, measure_returns, record, references
from noiseworks.bench.testbeds.maze.layouts import MAPS, Layout, make_layout
from noiseworks.bench.testbeds.maze.rendering import draw_paths, film, render
from noiseworks.bench.testbeds.maze.simulation import REWARDS, MazeBatch, advance

__all__ = [
    "BEHAVIOURS",
    "MAPS",
    "REWARDS",
    "Behaviour",
    "Layout",
    "MazeBatch",
    "advance",
    "draw_paths",
    "film",
    "fingerprint",
    "load",
    "make_layout",
    "measure_returns",
    "record",
    "references",
    "render",
    "steer",
]
