"""A batch of Meta-World environments of one task, with episodes that depend on their seed alone."""

from functools import cache
from typing import Any

import numpy as np
from noiseworks.bench.testbeds.batches import StepResult, check_actions, check_episodes
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError

TASKS = ("reach-v3", "drawer-open-v3", "pick-place-v3")  # those with a training recipe; any name steps
OBS_DIM, ACTION_DIM = 39, 4
MAX_STEPS = 200


@cache
def _draw(name: str, seed: int) -> Any:
    """Return Meta-World's benchmark of one task: its class and 50 start states."""
    try:
        import metaworld
    except ImportError:
        raise InputError("Meta-World is not installed: pip install 'noiseworks-bench[metaworld]'") from None
    if name not in metaworld.ALL_V3_ENVIRONMENTS:
        raise InputError(
            f"Meta-World has no task {name!r}; it has {', '.join(metaworld.ALL_V3_ENVIRONMENTS)}"
        )
    return metaworld.MT1(name, seed=seed)


class MetaWorldBatch:
    """N environments of one Meta-World task that step one after the other; a `BatchEnv`.

    Observations are `obs` float32 [N, 39], the simulator's state with the goal; actions are [N, 4] in [-1, 1]:
    motion of the hand and the gripper's effort. An episode ends with its first success.

    Args:
        num_envs: N.
        task: Meta-World's name of the task.
        max_steps: Limit of steps, at most the simulator's 500.

    Raises:
        InputError: When a number is out of range, the task is unknown or Meta-World is not installed.
    """

    fps = 80

    def __init__(self, num_envs: int, task: str, max_steps: int = MAX_STEPS) -> None:
        check_number("num_envs", num_envs, low=1, integer=True)
        check_number("max_steps", max_steps, low=1, high=500, integer=True)
        self.num_envs, self.task, self.max_steps = num_envs, task, max_steps
        self.envs = [_draw(task, 0).train_classes[task]() for _ in range(num_envs)]
        self.steps = np.zeros(num_envs, np.int64)
        self.running = np.zeros(num_envs, bool)
        self._obs = np.zeros((num_envs, OBS_DIM), np.float32)

    def reset(self, rows: np.ndarray, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Start new episodes in some rows.

        Args:
            rows: Environments to reset, int [n].
            tasks: Zeros [n]: there is one task.
            seeds: A whole number of at least 0 for each episode, which alone sets its start and goal.

        Raises:
            InputError: When lengths differ or a task or seed is out of range.
        """
        rows, tasks, seeds = check_episodes(rows, tasks, seeds, 1)
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            starts = _draw(self.task, seed // 50).train_tasks
            self.envs[row].set_task(starts[seed % 50])
            self._obs[row] = self.envs[row].reset()[0]
        self.steps[rows], self.running[rows] = 0, True

    def instruction(self, task: int) -> str:
        """Return the one task in words: its name without the version."""
        return self.task.rpartition("-")[0].replace("-", " ")

    def observe(self) -> dict[str, np.ndarray]:
        """Return the observation of every environment, `obs` float32 [N, 39]."""
        return {"obs": self._obs.copy()}

    def step(self, actions: np.ndarray) -> StepResult:
        """Advance the environments whose episode is running.

        Args:
            actions: [N, 4]; clipped to [-1, 1].

        Raises:
            InputError: When the shape is wrong or a value is NaN.
        """
        actions = check_actions(actions, self.num_envs, ACTION_DIM)
        solved = np.zeros(self.num_envs, bool)
        for row in np.flatnonzero(self.running).tolist():
            action = np.clip(actions[row], -1.0, 1.0).astype(np.float32)
            self._obs[row], _, _, _, info = self.envs[row].step(action)
            solved[row] = bool(info["success"])
        self.steps += self.running
        over = self.running & ~solved & (self.steps >= self.max_steps)
        self.running &= ~(solved | over)
        return StepResult(solved.astype(np.float64), solved, over)
