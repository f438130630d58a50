"""What batches of environments share: the result of a step, and checks of what they are given."""

from typing import NamedTuple

import numpy as np
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError


class StepResult(NamedTuple):
    """What a step returns, one entry per environment.

    Attributes:
        reward: float64 [N]; on `tabletop` and Meta-World 1 on success, else 0.
        terminated: bool [N], the task is solved.
        truncated: bool [N], the limit of steps is reached without success.
    """

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def check_episodes(
    rows: np.ndarray, tasks: np.ndarray, seeds: np.ndarray, num_tasks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arguments of a reset as arrays [n].

    Args:
        rows: Environments to reset, int [n].
        tasks: Tasks, 0 to num_tasks - 1, int [n].
        seeds: Whole numbers of at least 0, int [n].
        num_tasks: Number of tasks.

    Raises:
        InputError: When lengths differ or a task or seed is out of range.
    """
    rows, tasks, seeds = np.atleast_1d(rows), np.atleast_1d(tasks), np.atleast_1d(seeds)
    if not len(rows) == len(tasks) == len(seeds):
        raise InputError(
            f"rows, tasks and seeds must have one length, got {len(rows)}, {len(tasks)}, {len(seeds)}"
        )
    for task, seed in zip(tasks.tolist(), seeds.tolist(), strict=True):
        check_number("task", task, low=0, high=num_tasks - 1, integer=True)
        check_number("seed", seed, low=0, integer=True)
    return rows, tasks, seeds


def check_actions(actions: np.ndarray, num_envs: int, action_dim: int) -> np.ndarray:
    """Return actions as float64 [num_envs, action_dim].

    Raises:
        InputError: When the shape is wrong or a value is NaN.
    """
    actions = np.asarray(actions, np.float64)
    if actions.shape != (num_envs, action_dim):
        raise InputError(f"actions must have shape ({num_envs}, {action_dim}), got {actions.shape}")
    if np.isnan(actions).any():
        raise InputError("actions hold NaN; mend the policy's output before stepping")
    return actions
