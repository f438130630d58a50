"""Demonstrations of Meta-World's scripted experts."""

from typing import Any

import numpy as np
from noiseworks.bench.testbeds.metaworld.simulation import MetaWorldBatch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes

FIRST_SEED = 1 << 24  # far from the seeds of evaluations
# Steps that the expert goes on after its first success, so that a policy learns to rest there.
AFTER_SUCCESS = 8


def demonstrations(task: str, episodes: int, seed: int = 0, *, noise: float = 0.1) -> Episodes:
    """Return solved episodes of the task's scripted expert.

    Args:
        task: Meta-World's name of the task.
        episodes: How many.
        seed: Which demonstrations, 0 to 99.
        noise: Standard deviation of the noise on the motions that are executed; the expert's own motions are
            recorded, so that the policy learns to come back.

    Returns:
        Episodes with `obs` [M, 39] and `actions` [M, 4].

    Raises:
        InputError: When a number is out of range, Meta-World is not installed or its expert solves fewer than
            half of the episodes.
    """
    check_number("episodes", episodes, low=1, integer=True)
    check_number("seed", seed, low=0, high=99, integer=True)
    check_number("noise", noise, low=0)
    env = MetaWorldBatch(1, task)
    from metaworld.policies import ENV_POLICY_MAP

    rng, first = np.random.default_rng([seed, 1]), FIRST_SEED + 100_000 * seed
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(2 * episodes):
        env.reset(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([first + number]))
        episode = _roll_out(env, ENV_POLICY_MAP[task](), rng, noise)
        if episode is not None:
            kept.append(episode)
        if len(kept) == episodes:
            break
    else:
        raise InputError(f"the expert of {task} solved only {len(kept)} of {2 * episodes} episodes")
    obs, actions = ([pair[i] for pair in kept] for i in range(2))
    ends = np.cumsum([len(part) for part in actions])
    return Episodes(np.concatenate(obs), np.concatenate(actions), ends, np.zeros(episodes, np.int64))


def _roll_out(
    env: MetaWorldBatch, expert: Any, rng: np.random.Generator, noise: float
) -> tuple[np.ndarray, np.ndarray] | None:
    seen, raw = env.observe()["obs"][0], env.envs[0]
    obs, actions, left, solved = [], [], env.max_steps, False
    while left:
        action = np.clip(expert.get_action(seen.astype(np.float64)), -1.0, 1.0)
        obs.append(seen)
        actions.append(action.astype(np.float32))
        moved = action + noise * np.array([*rng.standard_normal(3), 0.0])
        state, _, _, _, info = raw.step(np.clip(moved, -1.0, 1.0).astype(np.float32))
        seen, left = state.astype(np.float32), left - 1
        if info["success"] and not solved:
            solved, left = True, min(left, AFTER_SUCCESS)
    return (np.stack(obs), np.stack(actions)) if solved else None
