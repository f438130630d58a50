"""The body in the maze and its rewards, for N mazes at once in numpy, in float64.

A square body of half width 0.15 is pushed by an action u in [-1, 1]^2: v <- 0.8 v + 0.6 u, then it moves by 0.1 v,
along x first and then along y. A wall stops the motion along its axis. A step covers at most 0.3, so nothing tunnels.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from noiseworks.bench.testbeds.batches import StepResult, check_actions, check_episodes
from noiseworks.bench.testbeds.maze.layouts import Layout, make_layout
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import normal, seed_keys, uniform

RADIUS, GAP = 0.15, 1e-6
FRICTION, PUSH, TIME_STEP = 0.8, 0.6, 0.1
GOAL_RADIUS, START_SPREAD = 0.5, 0.1
STATE_DIM, ACTION_DIM = 4, 2

RewardMode = Literal["sparse", "dense", "step_cost"]
REWARDS = ("sparse", "dense", "step_cost")


def advance(
    walls: np.ndarray, states: np.ndarray, actions: np.ndarray, shake: float | np.ndarray = 0.0
) -> np.ndarray:
    """Return the states one step later: the maze's law of motion.

    Args:
        walls: Whether a cell is wall, bool [rows, columns].
        states: x, y, vx, vy, float64 [N, 4].
        actions: [N, 2] in [-1, 1].
        shake: Added to the velocity, [N, 2] or one number.

    Returns:
        States, float64 [N, 4].
    """
    flat, width = walls.reshape(-1), walls.shape[1]
    velocity = FRICTION * states[:, 2:] + PUSH * actions + shake
    place = states[:, :2] + TIME_STEP * velocity
    out = np.empty_like(states)
    for axis, stride in ((0, 1), (1, width)):
        speed = velocity[:, axis]
        side = np.where(speed < 0, -RADIUS, RADIUS)
        face = np.floor(place[:, axis] + side)
        # The other axis: x moves at the old y, y at the new x.
        across = states[:, 1] if axis == 0 else out[:, 0]
        base = face.astype(np.int64) * stride
        other = width + 1 - stride
        first = (across - RADIUS).astype(np.int64) * other
        second = (across + RADIUS).astype(np.int64) * other
        hit = flat[base + first] | flat[base + second]
        stopped = np.where(speed < 0, face + 1 + (RADIUS + GAP), face - (RADIUS + GAP))
        out[:, axis] = np.where(hit, stopped, place[:, axis])
        out[:, 2 + axis] = np.where(hit, 0.0, speed)
    return out


class MazeBatch:
    """N mazes that step together; row i depends on its own seed and actions alone. A `BatchEnv`.

    An episode starts at rest in a random free cell that is not the goal (or at S), up to 0.1 off its centre along each
    axis. Nothing restarts by itself.

    Args:
        num_envs: Number of mazes N.
        layout: `open`, `umaze`, `medium`, `large`, `fork`, or the rows of a map of one's own.
        reward: `sparse`, 1 in every step that ends within 0.5 of the goal's centre, and no end; `dense`, exp(-distance)
            of it, and no end; or `step_cost`, -1 a step and 0 in the one that arrives, which ends the episode.
        max_steps: Steps after which an episode is truncated; the layout's own by default.
        process_noise: Standard deviation of what is added to the velocity in each step.

    Raises:
        InputError: When an argument is out of range or the layout is no maze.
    """

    def __init__(
        self,
        num_envs: int,
        layout: str | Sequence[str] | Layout = "umaze",
        *,
        reward: RewardMode = "sparse",
        max_steps: int | None = None,
        process_noise: float = 0.0,
    ) -> None:
        check_number("num_envs", num_envs, low=1, integer=True)
        check_choice("reward", reward, REWARDS)
        check_number("process_noise", process_noise, low=0)
        self.layout = make_layout(layout)
        self.max_steps = self.layout.max_steps if max_steps is None else max_steps
        check_number("max_steps", self.max_steps, low=1, integer=True)
        self.num_envs, self.reward, self.process_noise = num_envs, reward, process_noise
        self.states = np.zeros((num_envs, STATE_DIM))
        self.states[:, :2] = 1.5  # any place inside the table, until a row is reset
        goal = self.layout.cell_index(self.layout.goal)
        self.goals = np.full(num_envs, goal)
        self.steps = np.zeros(num_envs, np.int64)
        self.started = False
        self._rows = np.arange(num_envs)
        self._shakes = np.zeros((num_envs, self.max_steps, ACTION_DIM)) if process_noise else None

    def reset(
        self,
        rows: np.ndarray,
        tasks: np.ndarray,
        seeds: np.ndarray,
        *,
        cells: np.ndarray | None = None,
        goals: np.ndarray | None = None,
    ) -> None:
        """Start new episodes in some rows.

        Args:
            rows: Mazes to reset, int [n].
            tasks: Zeros [n]: there is one task.
            seeds: A whole number of at least 0 for each episode, which alone sets its start and its noise.
            cells: Numbers of the cells to start in, int [n], instead of drawn ones.
            goals: Numbers of the cells to reach, int [n], instead of the layout's G.

        Raises:
            InputError: When lengths differ or a row, task, seed or cell is out of range.
        """
        rows, tasks, seeds = check_episodes(rows, tasks, seeds, 1)
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= self.num_envs:
            raise InputError(f"rows must lie in 0 to {self.num_envs - 1}, got {rows.min()} to {rows.max()}")
        keys = seed_keys(seeds.tolist(), [0])[:, 0]
        drawn = uniform(keys, (4,)).numpy().astype(np.float64)
        starts = self.layout.starts
        chosen = starts[(drawn[:, 0] * len(starts)).astype(np.int64)] if cells is None else self._cells(cells)
        self.states[rows, :2] = self.layout.centre(chosen) + START_SPREAD * (2 * drawn[:, 1:3] - 1)
        self.states[rows, 2:] = 0.0
        own = self.layout.cell_index(self.layout.goal)
        self.goals[rows] = own if goals is None else self._cells(goals)
        self.steps[rows] = 0
        self.started = True
        if self._shakes is not None:
            self._shakes[rows] = self.process_noise * normal(keys, self._shakes.shape[1:], counter0=1).numpy()

    def _cells(self, numbers: np.ndarray) -> np.ndarray:
        numbers, count = np.asarray(numbers), len(self.layout.cells)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
            raise InputError(f"cells must lie in 0 to {count - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers

    def step(self, actions: np.ndarray, active: np.ndarray | None = None) -> StepResult:
        """Advance every maze by one step.

        Args:
            actions: [N, 2]; clipped to [-1, 1].
            active: Which mazes advance, bool [N]; the others stand still, without reward or end. All by default.

        Raises:
            InputError: When the shape is wrong, a value is NaN or no episode has been started.
        """
        if not self.started:
            raise InputError("no episode has been started: reset the maze before its first step")
        actions = np.clip(check_actions(actions, self.num_envs, ACTION_DIM), -1.0, 1.0)
        shake: float | np.ndarray = 0.0
        if self._shakes is not None:
            shake = self._shakes[self._rows, np.minimum(self.steps, self.max_steps - 1)]
        moved = advance(self.layout.walls, self.states, actions, shake)
        self.states = moved if active is None else np.where(active[:, None], moved, self.states)
        self.steps += True if active is None else active
        distance = self.distances()
        arrived = distance <= GOAL_RADIUS
        if self.reward == "dense":
            reward = np.exp(-distance)
        elif self.reward == "sparse":
            reward = arrived.astype(np.float64)
        else:
            reward = np.where(arrived, 0.0, -1.0)
        terminated = arrived if self.reward == "step_cost" else np.zeros(self.num_envs, bool)
        truncated = ~terminated & (self.steps >= self.max_steps)
        if active is not None:
            reward, terminated, truncated = reward * active, terminated & active, truncated & active
        return StepResult(reward, terminated, truncated)

    def distances(self) -> np.ndarray:
        """Return the distances to the goals' centres, float64 [N]."""
        away = self.states[:, :2] - self.layout.centre(self.goals)
        return np.sqrt(away[:, 0] ** 2 + away[:, 1] ** 2)

    def solved(self) -> np.ndarray:
        """Return which bodies are within 0.5 of their goal's centre now, bool [N]."""
        return self.distances() <= GOAL_RADIUS

    def observe(self) -> dict[str, np.ndarray]:
        """Return the policies' observation: `obs` float32 [N, 4], x, y, vx and vy."""
        return {"obs": self.states.astype(np.float32)}
