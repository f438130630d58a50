"""Scripted behaviours, from the expert to random actions, that make the mazes' data sets."""

from typing import Literal

import numpy as np
from noiseworks.bench.testbeds.maze.layouts import Layout
from noiseworks.bench.testbeds.maze.simulation import ACTION_DIM, GOAL_RADIUS, MazeBatch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

BehaviourName = Literal["expert", "slow", "medium", "random", "navigate", "routes", "routes-slow"]
BEHAVIOURS = ("expert", "slow", "medium", "random", "navigate", "routes", "routes-slow")
EXPERT_NOISE, MEDIUM_NOISE, SLOW_CAP = 0.1, 0.5, 0.4
BLOCK, RANDOM_BLOCKS = 10, 0.5
# The way-points (row, column) of the two routes on `fork`.
ROUTES = ((1, 5), (7, 5))


def steer(layout: Layout, states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the expert's actions toward cells: a PD controller toward the next cell of the shortest path.

    Args:
        layout: The maze.
        states: x, y, vx, vy, [N, 4].
        targets: Numbers of the cells to reach, int [N].

    Returns:
        clip(4 (c - p) - v, -1, 1) with c the centre of the next cell, float64 [N, 2].
    """
    column, row = states[:, 0].astype(np.int64), states[:, 1].astype(np.int64)
    cell = layout.index[row * len(layout.rows[0]) + column]
    centre = layout.centre(layout.next_cell[targets, cell])
    return np.clip(4 * (centre - states[:, :2]) - states[:, 2:], -1.0, 1.0)


class Behaviour:
    """A scripted policy for all mazes of a batch.

    - `expert`: `steer` to the goal plus normal noise of 0.1. `slow`: the same with the action cut to 0.4 first.
    - `medium`: in blocks of 10 steps, half of them uniform actions, the others half the expert's plus noise of 0.5.
    - `random`: uniform actions.
    - `navigate`: the expert toward random cells, a new one whenever it is within 0.5: play data.
    - `routes`, `routes-slow`: on `fork`, the expert or slow one over the upper or the lower way, each for half of the
      episodes.

    Args:
        name: Which.
        env: The mazes.
        seed: Of its random choices.
        noise: Whether the expert's normal noise is added; without, `expert` is the reference of scores.

    Raises:
        InputError: When the name is unknown or the layout is not the behaviour's.
    """

    def __init__(self, name: BehaviourName, env: MazeBatch, seed: int = 0, *, noise: bool = True) -> None:
        check_choice("behaviour", name, BEHAVIOURS)
        check_number("seed", seed, low=0, integer=True)
        if name.startswith("routes") and env.layout.name != "fork":
            raise InputError(f"the behaviour {name} is for the layout fork, got {env.layout.name}")
        self.name, self.env, self.noise = name, env, noise
        self.rng = np.random.default_rng([seed, BEHAVIOURS.index(name)])
        self.targets = env.goals.copy()
        self.mixing = np.zeros(env.num_envs, bool)
        self.reset(np.arange(env.num_envs))

    def reset(self, rows: np.ndarray) -> None:
        """Begin episodes in some rows, after the mazes did."""
        count = len(rows)
        if self.name == "navigate":
            self.targets[rows] = self.rng.integers(len(self.env.layout.cells), size=count)
        elif self.name.startswith("routes"):
            ways = np.array([self.env.layout.cell_index(way) for way in ROUTES])
            self.targets[rows] = ways[self.rng.integers(len(ways), size=count)]
        else:
            self.targets[rows] = self.env.goals[rows]

    def act(self) -> np.ndarray:
        """Return the next actions, float64 [N, 2] in [-1, 1]."""
        env, shape = self.env, (self.env.num_envs, ACTION_DIM)
        if self.name == "random":
            return self.rng.uniform(-1, 1, shape)
        self._retarget()
        action = steer(env.layout, env.states, self.targets)
        if self.name == "medium":
            begins = env.steps % BLOCK == 0
            self.mixing = np.where(begins, self.rng.random(shape[0]) < RANDOM_BLOCKS, self.mixing)
            mixed = 0.5 * action + self.rng.normal(0, MEDIUM_NOISE, shape)
            action = np.where(self.mixing[:, None], self.rng.uniform(-1, 1, shape), mixed)
        else:
            if self.name in ("slow", "routes-slow"):
                action = np.clip(action, -SLOW_CAP, SLOW_CAP)
            if self.noise:
                action = action + self.rng.normal(0, EXPERT_NOISE, shape)
        return np.clip(action, -1.0, 1.0)

    def _retarget(self) -> None:
        """Give those who reached their way-point another one."""
        if self.name != "navigate" and not self.name.startswith("routes"):
            return
        away = self.env.states[:, :2] - self.env.layout.centre(self.targets)
        there = np.flatnonzero((away**2).sum(1) <= GOAL_RADIUS**2)
        if self.name == "navigate":
            self.targets[there] = self.rng.integers(len(self.env.layout.cells), size=len(there))
        else:
            self.targets[there] = self.env.goals[there]
