"""Acting in Gymnasium's environments: recording, evaluation and chunks of actions.

A vector environment declares in `metadata["autoreset_mode"]` how it begins the next episode: in the step that ends one
(SAME_STEP; the true last observation is `info["final_obs"]`), in the step after it, whose action is ignored
(NEXT_STEP), or not by itself (DISABLED). All three are read here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.scores import mean_interval, normalised_score
from noiseworks.kits.rl.transitions import Transitions

Policy = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class VectorStep:
    """One step of a vector environment, whatever its way to begin the next episode.

    Attributes:
        observations: What the policy acts on next, [N, Do].
        reached: The observation that the action led to, [N, Do].
        rewards: float64 [N].
        terminated: bool [N].
        truncated: bool [N], and not terminated.
        real: bool [N], false where the step only began an episode.
        info: The environment's own.
    """

    observations: np.ndarray
    reached: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    real: np.ndarray
    info: dict[str, Any]


class Stepper:
    """A vector environment whose episodes follow each other without dummy steps in what is recorded.

    Args:
        env: The environment.

    Attributes:
        steps: Real steps taken so far, over all environments: what a claim about real steps counts.

    Raises:
        InputError: When the environment does not say how it begins the next episode.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise InputError(
                "the vector environment does not declare metadata['autoreset_mode']; set it to one of Gymnasium's modes"
            )
        self.env, self.mode = env, mode
        self.steps = 0
        self.observations: np.ndarray | None = None
        self._ended = np.zeros(env.num_envs, bool)

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Begin episodes everywhere; environment i's first has the seed plus i."""
        self.observations = self.env.reset(seed=seed)[0]
        self._ended[:] = False
        return self.observations

    def step(self, actions: np.ndarray) -> VectorStep:
        """Advance all environments.

        Raises:
            InputError: When it was never reset.
        """
        if self.observations is None:
            raise InputError("no episode has been started: reset before the first step")
        seen, rewards, terminated, truncated, info = self.env.step(actions)
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        truncated = truncated & ~terminated
        ended, reached = terminated | truncated, seen
        real = np.ones(len(ended), bool)
        if self.mode is AutoresetMode.NEXT_STEP:
            real = ~self._ended
        elif self.mode is AutoresetMode.SAME_STEP and ended.any():
            reached = np.array(seen)
            reached[ended] = np.stack([info["final_obs"][i] for i in np.flatnonzero(ended)])
        elif self.mode is AutoresetMode.DISABLED and ended.any():
            seen = self.env.reset(options={"reset_mask": ended})[0]
        self._ended = ended
        self.steps += int(real.sum())
        self.observations = seen
        return VectorStep(seen, reached, np.asarray(rewards, np.float64), terminated, truncated, real, info)


def collect(env: VectorEnv, policy: Policy, steps: int, seed: int = 0) -> Transitions:
    """Return transitions of a policy, each environment's after the other's.

    Args:
        env: Vector environment with vector observations.
        policy: Observations [N, Do] -> actions [N, Da].
        steps: Steps in all; each environment gives the same number, rounded up. A cut episode ends in a timeout.
        seed: Of the first reset.
    """
    check_number("steps", steps, low=1, integer=True)
    stepper, each = Stepper(env), -(-steps // env.num_envs)
    seen = stepper.reset(seed)
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
    while min(map(len, rows)) < each:
        actions = np.asarray(policy(seen))
        result = stepper.step(actions)
        for i in np.flatnonzero(result.real).tolist():
            if len(rows[i]) < each:
                ends = bool(result.terminated[i]), bool(result.truncated[i])
                rows[i].append((seen[i], actions[i], result.rewards[i], result.reached[i], *ends))
        seen = result.observations
    columns = [np.stack(column) for column in zip(*(row for part in rows for row in part), strict=True)]
    last = np.arange(each - 1, len(columns[0]), each)
    columns[5][last] |= ~columns[4][last]
    return Transitions(*columns)


def collect_episodes(
    env: VectorEnv, policy: Policy, seed: int, after: Callable[[VectorStep], None] | None = None
) -> Transitions:
    """Return one whole episode of each environment, each after the other's.

    Nothing is left of an environment's state: training that acts in whole episodes can be stopped between them.

    Args:
        env: Vector environment with vector observations.
        policy: Observations [N, Do] -> actions [N, ...]; an action of several axes is recorded flat.
        seed: Of the reset: environment i's episode has the seed plus i.
        after: Called with every step.

    Returns:
        Transitions; `info["steps"]` of environments that play chunks is summed as `about["steps"]`.
    """
    stepper, n = Stepper(env), env.num_envs
    seen = stepper.reset(seed)
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(n)]
    live, played = np.ones(n, bool), 0
    while live.any():
        actions = np.asarray(policy(seen))
        result = stepper.step(actions)
        if after is not None:
            after(result)
        steps = np.asarray(result.info.get("steps", np.ones(n, np.int64)))
        for i in np.flatnonzero(live & result.real).tolist():
            ends = bool(result.terminated[i]), bool(result.truncated[i])
            rows[i].append((seen[i], actions[i].reshape(-1), result.rewards[i], result.reached[i], *ends))
            played += int(steps[i])
        live &= ~(result.terminated | result.truncated)
        seen = result.observations
    columns = [np.stack(column) for column in zip(*(row for part in rows for row in part), strict=True)]
    return Transitions(*columns, {"steps": played})


@dataclass(frozen=True)
class EpisodeReport:
    """Episodes of an evaluation.

    Attributes:
        returns: Undiscounted sum of rewards of each, float64 [E].
        lengths: Steps of each, int64 [E].
        success: Whether the task was solved at any time, bool [E].
        steps: Real steps taken, including those of episodes that were not counted.
        paths: Observations of the first episode of the first environments, from its start to what its last action led
            to, each [L + 1, Do]; as many as were asked for.
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    steps: int
    paths: tuple[np.ndarray, ...] = ()

    def scores(self, random: float, expert: float) -> np.ndarray:
        """Return the normalised score of each episode, 0 for the random policy and 100 for the expert."""
        return normalised_score(self.returns, random, expert)

    def summary(self) -> dict[str, float]:
        """Return the mean return with its interval, success and length, for JSON."""
        mean, low, high = mean_interval(self.returns)
        success, length = float(self.success.mean()), float(self.lengths.mean())
        return {"return": mean, "low": low, "high": high, "success": success, "length": length} | {
            "episodes": len(self.returns)
        }


def evaluate_returns(
    env: VectorEnv,
    policy: Policy,
    episodes: int,
    seed: int = 0,
    *,
    after: Callable[[VectorStep], None] | None = None,
    paths: int = 0,
) -> EpisodeReport:
    """Run a policy; every environment gives the same number of its first episodes.

    To count whichever episodes end first would favour short ones.

    Args:
        env: Vector environment; solved tasks show in `info["success"]` or as termination.
        policy: Observations [N, Do] -> actions [N, Da].
        episodes: How many, rounded up to a multiple of the environments.
        seed: Of the first reset: environment i's first episode has the seed plus i.
        after: Called with every step, for policies that remember rewards or forget at an episode's end.
        paths: Environments whose first episode's observations are kept, at most all.
    """
    check_number("episodes", episodes, low=1, integer=True)
    stepper, each, n = Stepper(env), -(-episodes // env.num_envs), env.num_envs
    seen = stepper.reset(seed)
    returns, lengths = np.zeros((n, each)), np.zeros((n, each), np.int64)
    success, done = np.zeros((n, each), bool), np.zeros(n, np.int64)
    kept = [[seen[i].copy()] for i in range(min(paths, n))]
    while (done < each).any():
        result = stepper.step(np.asarray(policy(seen)))
        if after is not None:
            after(result)
        rows = np.flatnonzero(result.real & (done < each))
        returns[rows, done[rows]] += result.rewards[rows]
        lengths[rows, done[rows]] += 1
        solved = result.info.get("success", result.terminated)
        success[rows, done[rows]] |= np.asarray(solved, bool)[rows]
        for i in rows[(rows < len(kept)) & (done[rows] == 0)].tolist():
            kept[i].append(result.reached[i].copy())
        done[rows] += (result.terminated | result.truncated)[rows]
        seen = result.observations
    found = returns.reshape(-1), lengths.reshape(-1), success.reshape(-1), stepper.steps
    return EpisodeReport(*found, tuple(map(np.stack, kept)))


class ActionChunk(gymnasium.Wrapper):
    """Plays `chunk` actions in one step and sums their rewards; an episode's end cuts the chunk short.

    `info["steps"]` counts the actions that were played. Discounts then count chunks.

    Args:
        env: Environment with a bounded vector of actions.
        chunk: Actions of a step, at least 1.

    Raises:
        InputError: When the actions are no bounded vector.
    """

    def __init__(self, env: gymnasium.Env, chunk: int) -> None:
        super().__init__(env)
        check_number("chunk", chunk, low=1, integer=True)
        space = env.action_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not space.is_bounded():
            raise InputError(f"chunks need a bounded vector of actions, got {space}")
        self.chunk = chunk
        self.action_space = chunk_space(space, chunk)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play the actions [chunk, Da]."""
        total, played = 0.0, 0
        for one in np.asarray(action).reshape(self.chunk, -1):
            seen, reward, terminated, truncated, info = self.env.step(one)
            total, played = total + float(reward), played + 1
            if terminated or truncated:
                break
        return seen, total, terminated, truncated, {**info, "steps": played}


def chunk_space(space: Box, chunk: int) -> Box:
    """Return the space of `chunk` actions of a space, shape [chunk, Da]."""
    return Box(np.tile(space.low, (chunk, 1)), np.tile(space.high, (chunk, 1)), dtype=space.dtype)
