"""A batch of Push-T environments, with episodes that depend on their seed alone."""

import warnings
from typing import Any, Literal, get_args

import numpy as np
from noiseworks.bench.testbeds.batches import StepResult, check_actions, check_episodes
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError

Observation = Literal["state", "keypoints", "pixels"]
OBSERVATIONS: tuple[str, ...] = get_args(Observation)
ACTION_DIM, SIDE = 2, 512.0
MAX_STEPS = 300
# As on the table: a jump by up to a tenth of the side, once in 50 steps; the T stays off the walls.
DISTURBED, JUMP, ROOM = 0.02, 0.1 * SIDE, (100.0, 400.0)
_KINDS = {"state": "state", "keypoints": "environment_state_agent_pos", "pixels": "pixels_agent_pos"}


def _make(observation: Observation) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame looks up its resources in an outdated way
            from gym_pusht.envs.pusht import PushTEnv
    except ImportError:
        raise InputError("Push-T is not installed: pip install 'noiseworks-bench[pusht]'") from None
    return PushTEnv(obs_type=_KINDS[observation])


class PushTBatch:
    """N Push-T environments that step one after the other; a `BatchEnv`.

    Actions [N, 2] are where the pusher is drawn to, in pixels from 0 to 512. Observations by kind:

    - `state`: `obs` [N, 5], pusher, T and its angle.
    - `keypoints`: `obs` [N, 18], eight corners of the T and the pusher; the same as
      `observation.environment_state` [N, 16] and `observation.state` [N, 2].
    - `pixels`: `observation.image` [N, 3, 96, 96] in [0, 1] and `observation.state` [N, 2].

    The names with a dot are LeRobot's. An episode ends when more than 95 % of the T lies on the outline; a step's
    reward is the covered share over 0.95.

    Args:
        num_envs: N.
        observation: `state`, `keypoints` or `pixels`.
        max_steps: Limit of steps, 300 in the literature.
        disturb: Whether the T jumps by up to 51 pixels now and then.

    Raises:
        InputError: When an argument is out of range or gym-pusht is not installed.
    """

    fps = 10

    def __init__(
        self,
        num_envs: int,
        observation: Observation = "state",
        max_steps: int = MAX_STEPS,
        *,
        disturb: bool = False,
    ) -> None:
        check_number("num_envs", num_envs, low=1, integer=True)
        check_choice("observation", observation, OBSERVATIONS)
        check_number("max_steps", max_steps, low=1, integer=True)
        self.num_envs, self.observation, self.max_steps = num_envs, observation, max_steps
        self.disturb = disturb
        self.envs = [_make(observation) for _ in range(num_envs)]
        self.steps = np.zeros(num_envs, np.int64)
        self.running = np.zeros(num_envs, bool)
        self._jumps = [np.random.default_rng(0) for _ in range(num_envs)]
        blank = self._named(self.envs[0].reset(seed=0)[0])
        self._obs = {name: np.zeros((num_envs, *value.shape), np.float32) for name, value in blank.items()}

    def reset(self, rows: np.ndarray, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Start new episodes in some rows.

        Args:
            rows: Environments to reset, int [n].
            tasks: Zeros [n]: there is one task.
            seeds: A whole number of at least 0 for each episode, which alone sets its start and its jumps.

        Raises:
            InputError: When lengths differ or a task or seed is out of range.
        """
        rows, tasks, seeds = check_episodes(rows, tasks, seeds, 1)
        for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
            self._jumps[row] = np.random.default_rng([seed, 1])
            self._keep(row, self.envs[row].reset(seed=seed)[0])
        self.steps[rows], self.running[rows] = 0, True

    def instruction(self, task: int) -> str:
        """Return the one task in words."""
        return "push the T onto its outline"

    def observe(self) -> dict[str, np.ndarray]:
        """Return the observation of every environment, float32 arrays [N, ...]."""
        return {name: value.copy() for name, value in self._obs.items()}

    def step(self, actions: np.ndarray) -> StepResult:
        """Advance the environments whose episode is running.

        Args:
            actions: [N, 2] in pixels; clipped to [0, 512].

        Raises:
            InputError: When the shape is wrong or a value is NaN.
        """
        actions = check_actions(actions, self.num_envs, ACTION_DIM)
        reward, solved = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        for row in np.flatnonzero(self.running).tolist():
            if self.disturb:
                self._disturb(row)
            seen, reward[row], solved[row], _, _ = self.envs[row].step(np.clip(actions[row], 0.0, SIDE))
            self._keep(row, seen)
        self.steps += self.running
        over = self.running & ~solved & (self.steps >= self.max_steps)
        self.running &= ~(solved | over)
        return StepResult(reward, solved, over)

    def _disturb(self, row: int) -> None:
        rng, env = self._jumps[row], self.envs[row]
        jumps, by = rng.random() < DISTURBED, rng.uniform(-JUMP, JUMP, 2)
        if jumps:
            env.block.position = tuple(np.clip(np.array(env.block.position) + by, *ROOM).tolist())

    def _keep(self, row: int, seen: Any) -> None:
        for name, value in self._named(seen).items():
            self._obs[name][row] = value

    def _named(self, seen: Any) -> dict[str, np.ndarray]:
        if self.observation == "state":
            return {"obs": seen}
        if self.observation == "pixels":
            image = np.moveaxis(seen["pixels"], -1, 0).astype(np.float32) / 255
            return {"observation.image": image, "observation.state": seen["agent_pos"]}
        corners, pusher = seen["environment_state"], seen["agent_pos"]
        both = {"observation.environment_state": corners, "observation.state": pusher}
        return {"obs": np.concatenate((corners, pusher))} | both
