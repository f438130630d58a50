"""The mazes as Gymnasium's environments: one, and many that step together.

Importing this module registers `noiseworks/Maze-v0`:

    gymnasium.make("noiseworks.bench.testbeds.maze.environment:noiseworks/Maze-v0", layout="medium")
    gymnasium.make_vec("noiseworks.bench.testbeds.maze.environment:noiseworks/Maze-v0", num_envs=64, layout="medium")
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from noiseworks.bench.testbeds.batches import check_actions
from noiseworks.bench.testbeds.maze.layouts import Layout
from noiseworks.bench.testbeds.maze.rendering import render
from noiseworks.bench.testbeds.maze.simulation import ACTION_DIM, MazeBatch, RewardMode
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError

ENV_ID = "noiseworks/Maze-v0"
VIEW_SIZE, TOP_SPEED = 32, 3.0
FIRST_SEEDS = 2**31


def state_space(layout: Layout, *, goal: bool, process_noise: float) -> spaces.Box:
    """Return the space of x, y, vx, vy and, if wanted, the goal's centre x, y."""
    size = np.array(layout.walls.shape[::-1], np.float32)
    speed = np.full(2, TOP_SPEED if process_noise == 0 else np.inf, np.float32)
    low, high = [np.zeros(2, np.float32), -speed], [size, speed]
    if goal:
        low, high = [*low, np.zeros(2, np.float32)], [*high, size]
    return spaces.Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)


def observe(batch: MazeBatch, *, goal: bool) -> np.ndarray:
    """Return the states of all mazes, with their goals if wanted, float32 [N, 4 or 6]."""
    parts = [batch.states, batch.layout.centre(batch.goals)] if goal else [batch.states]
    return np.concatenate(parts, axis=1).astype(np.float32)


class MazeEnv(gymnasium.Env):
    """One maze; observations are x, y, vx, vy, float32 [4], actions float32 [2] in [-1, 1].

    `info["success"]` says whether the body is within 0.5 of the goal's centre. The options of a reset may name a start
    and a goal: `reset(options={"start": (row, column), "goal": (row, column)})`.

    Args:
        layout: Name or rows of a map, see `MazeBatch`.
        reward: `sparse`, `dense` or `step_cost`.
        max_steps: Limit of steps; the layout's own by default.
        process_noise: Standard deviation of what is added to the velocity in each step.
        goal_conditioned: Whether observations end with the goal's centre.
        view: Whether observations are a dictionary of `state` and `view`, a picture from above, uint8 [32, 32, 3].
        render_mode: `rgb_array` or None.

    Raises:
        InputError: When an argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        layout: str | Sequence[str] = "umaze",
        *,
        reward: RewardMode = "sparse",
        max_steps: int | None = None,
        process_noise: float = 0.0,
        goal_conditioned: bool = False,
        view: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.batch = MazeBatch(1, layout, reward=reward, max_steps=max_steps, process_noise=process_noise)
        self.goal_conditioned, self.view, self.render_mode = goal_conditioned, view, render_mode
        state = state_space(self.batch.layout, goal=goal_conditioned, process_noise=process_noise)
        picture = spaces.Box(0, 255, (VIEW_SIZE, VIEW_SIZE, 3), np.uint8)
        self.observation_space = spaces.Dict({"state": state, "view": picture}) if view else state
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the same seed gives the same start as in a `MazeBatch`."""
        super().reset(seed=seed)
        own = int(self.np_random.integers(FIRST_SEEDS)) if seed is None else seed
        _start(self.batch, np.zeros(1, np.int64), np.array([own]), options)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        result = self.batch.step(np.asarray(action)[None])
        ends = bool(result.terminated[0]), bool(result.truncated[0])
        return self._observe(), float(result.reward[0]), *ends, self._info()

    def render(self) -> np.ndarray | None:
        """Return the picture of the maze, uint8 [H, W, 3], when `render_mode` is `rgb_array`."""
        return None if self.render_mode is None else render(self.batch.layout, self.batch.states)[0]

    def _observe(self) -> Any:
        state = observe(self.batch, goal=self.goal_conditioned)[0]
        if not self.view:
            return state
        return {"state": state, "view": render(self.batch.layout, self.batch.states, size=VIEW_SIZE)[0]}

    def _info(self) -> dict[str, Any]:
        return {"success": bool(self.batch.solved()[0])}


class MazeVectorEnv(VectorEnv):
    """Many mazes that step together; an episode's end begins the next one in the same step.

    `info["final_obs"]` [N, Do] then holds the true last observations where `info["_final_obs"]` [N] is set.
    Maze i behaves as a `MazeEnv` reset with the seed plus i.

    Args:
        num_envs: How many.
        layout: Name or rows of a map, see `MazeBatch`.
        reward: `sparse`, `dense` or `step_cost`.
        max_steps: Limit of steps; the layout's own by default.
        process_noise: Standard deviation of what is added to the velocity in each step.
        goal_conditioned: Whether observations end with the goal's centre.
        chunk: Actions that one step plays, which are then [N, chunk, 2]; an end cuts it short, and `info["steps"]`
            counts what was played. None for single actions [N, 2].
        render_mode: `rgb_array` or None.

    Raises:
        InputError: When an argument is out of range.
    """

    metadata = {  # noqa: RUF012  (Gymnasium's own form)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        layout: str | Sequence[str] = "umaze",
        *,
        reward: RewardMode = "sparse",
        max_steps: int | None = None,
        process_noise: float = 0.0,
        goal_conditioned: bool = False,
        chunk: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if chunk is not None:
            check_number("chunk", chunk, low=1, integer=True)
        self.batch = MazeBatch(
            num_envs, layout, reward=reward, max_steps=max_steps, process_noise=process_noise
        )
        self.num_envs, self.goal_conditioned, self.chunk = num_envs, goal_conditioned, chunk
        self.render_mode = render_mode
        self.single_observation_space = state_space(
            self.batch.layout, goal=goal_conditioned, process_noise=process_noise
        )
        shape = (ACTION_DIM,) if chunk is None else (chunk, ACTION_DIM)
        self.single_action_space = spaces.Box(-1.0, 1.0, shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes everywhere; maze i's with the seed plus i."""
        super().reset(seed=seed)
        rows = np.arange(self.num_envs)
        if seed is not None or not self._generators:
            first = int(self.np_random.integers(FIRST_SEEDS)) if seed is None else seed
            self._generators = [seeding.np_random(first + i)[0] for i in rows.tolist()]
        seeds = self._seeds(rows) if seed is None else seed + rows
        _start(self.batch, rows, seeds, options)
        return observe(self.batch, goal=self.goal_conditioned), {"success": self.batch.solved()}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance all mazes by one action, or by a chunk of them."""
        reward, terminated, truncated, steps = self._play(np.asarray(actions))
        info: dict[str, Any] = {"success": self.batch.solved(), "steps": steps}
        seen, rows = observe(self.batch, goal=self.goal_conditioned), np.flatnonzero(terminated | truncated)
        if len(rows):
            info |= {"final_obs": seen, "_final_obs": terminated | truncated}
            self.batch.reset(rows, np.zeros(len(rows), np.int64), self._seeds(rows))
            seen = observe(self.batch, goal=self.goal_conditioned)
        return seen, reward, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the pictures of all mazes, uint8 [H, W, 3] each, when `render_mode` is `rgb_array`."""
        return None if self.render_mode is None else tuple(render(self.batch.layout, self.batch.states))

    def _play(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return rewards, ends and steps of the mazes, which stand still once their episode has ended."""
        if self.chunk is None:
            result = self.batch.step(actions)
            return *result, np.ones(self.num_envs, np.int64)
        if actions.shape != (self.num_envs, self.chunk, ACTION_DIM):
            raise InputError(
                f"actions must have shape ({self.num_envs}, {self.chunk}, {ACTION_DIM}), got {actions.shape}"
            )
        check_actions(actions.reshape(self.num_envs, -1), self.num_envs, self.chunk * ACTION_DIM)
        total, steps = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for one in actions.swapaxes(0, 1):
            active = ~(terminated | truncated)
            result = self.batch.step(one, active)
            total, steps = total + result.reward, steps + active
            terminated, truncated = terminated | result.terminated, truncated | result.truncated
        return total, terminated, truncated, steps

    def _seeds(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._generators[i].integers(FIRST_SEEDS) for i in rows.tolist()], np.int64)


def _start(batch: MazeBatch, rows: np.ndarray, seeds: np.ndarray, options: dict[str, Any] | None) -> None:
    """Begin episodes, with the start and the goal that the options of a reset may name."""
    options = options or {}
    if unknown := sorted(set(options) - {"start", "goal"}):
        raise InputError(f"the options of a reset are start and goal, got {', '.join(unknown)}")
    cells = {name: np.full(len(rows), batch.layout.cell_index(cell)) for name, cell in options.items()}
    batch.reset(rows, np.zeros_like(rows), seeds, cells=cells.get("start"), goals=cells.get("goal"))


gymnasium.register(
    id=ENV_ID,
    entry_point=f"{__name__}:MazeEnv",
    vector_entry_point=f"{__name__}:MazeVectorEnv",
)
