"""Gymnasium's vector environments as stable-baselines3's, and transitions as its replay buffer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.stepping import Stepper, VectorStep
from noiseworks.kits.rl.transitions import Transitions
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv


class GymnasiumVecEnv(VecEnv):
    """A vectorised Gymnasium environment under stable-baselines3's interface.

    Args:
        env: Vector environment with vector observations that begins the next episode in the step that ends one, or not
            by itself; the interface has no room for dummy steps.

    Attributes:
        stepper: Counts the real steps.

    Raises:
        InputError: When the environment begins episodes in the step after an end.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env, self.stepper = env, Stepper(env)
        if self.stepper.mode.name == "NEXT_STEP":
            raise InputError(
                "stable-baselines3 has no dummy steps: make the vector environment with the mode SAME_STEP"
            )
        self._actions = np.zeros(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Begin episodes everywhere; `seed` sets the seed of the first environment."""
        seen = self.stepper.reset(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return seen

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Advance all environments."""
        result = self.stepper.step(self._actions)
        done = result.terminated | result.truncated
        return result.observations, result.rewards.astype(np.float32), done, _infos(result, done)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, the same for all environments."""
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all environments.

        Raises:
            InputError: When only some are named.
        """
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise InputError("environments that step together share their attributes: name all of them")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once, and return its result for each environment."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return no: the environments inside have no wrappers of their own."""
        return [False] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the pictures of all environments, when the render mode is `rgb_array`."""
        return list(self.env.render() or [None] * self.num_envs)


def _infos(result: VectorStep, done: np.ndarray) -> list[dict[str, Any]]:
    infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in result.truncated]
    success, steps = result.info.get("success"), result.info.get("steps")
    for i, info in enumerate(infos):
        if success is not None:
            info["is_success"] = bool(success[i])
        if steps is not None:
            info["steps"] = int(steps[i])
        if done[i]:
            info["terminal_observation"] = result.reached[i]
    return infos


def fill_replay(buffer: ReplayBuffer, transitions: Transitions) -> None:
    """Add recorded transitions to a replay buffer, the first ones first; a last few that fill no row are left out.

    Args:
        buffer: Of the same observation and action spaces; rows hold one transition of each of its environments.
        transitions: What to add.

    Raises:
        InputError: When widths differ or the buffer is too small.
    """
    n = buffer.n_envs
    if (int(np.prod(buffer.obs_shape)), buffer.action_dim) != (transitions.obs_dim, transitions.action_dim):
        raise InputError(
            f"the buffer holds observations {buffer.obs_shape} and {buffer.action_dim} actions, the transitions "
            f"have {transitions.obs_dim} and {transitions.action_dim}"
        )
    if len(transitions) > buffer.buffer_size * n:
        raise InputError(
            f"{len(transitions)} transitions do not fit into a buffer of {buffer.buffer_size * n}"
        )
    done = transitions.terminals | transitions.timeouts
    for a in range(0, len(transitions) - n + 1, n):
        rows = slice(a, a + n)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in transitions.timeouts[rows]]
        buffer.add(
            transitions.observations[rows],
            transitions.next_observations[rows],
            transitions.actions[rows],
            transitions.rewards[rows],
            done[rows],
            infos,
        )
