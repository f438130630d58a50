"""Which actions of a prediction are executed, and how episodes are cut into training windows.

With `To = n_obs_steps`, `Tp = horizon` and `Ta = n_action_steps`: entry j of a prediction made at time t is the
action for time `t - (To - 1) + j`, so the action for the current observation is entry `To - 1`, and the executed
part is `[To - 1 : To - 1 + Ta]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from noiseworks.core.arrays import read_arrays
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from torch import Tensor


@dataclass(frozen=True)
class ChunkSpec:
    """The time window of a policy.

    Attributes:
        horizon: Actions of a prediction, Tp.
        n_obs_steps: Observations that the policy reads, To.
        n_action_steps: Actions executed of each prediction, Ta; at most Tp - To + 1.
        start_at_current: Whether the executed part starts with the action for the current observation. False is
            the convention of some published low-dimensional policies, which start one entry later.
    """

    horizon: int
    n_obs_steps: int
    n_action_steps: int
    start_at_current: bool = True

    def __post_init__(self) -> None:
        for name in ("horizon", "n_obs_steps", "n_action_steps"):
            check_number(name, getattr(self, name), low=1, integer=True)
        room = self.horizon - self.start
        if self.n_action_steps > room:
            raise InputError(
                f"n_action_steps must be at most {room} (horizon {self.horizon}, first executed entry "
                f"{self.start}), got {self.n_action_steps}"
            )

    @property
    def start(self) -> int:
        """Index of the first executed entry of a prediction."""
        return self.n_obs_steps - 1 if self.start_at_current else self.n_obs_steps

    @property
    def executed(self) -> slice:
        """The executed part of a prediction's time axis."""
        return slice(self.start, self.start + self.n_action_steps)


@dataclass(frozen=True)
class Episodes:
    """Episodes one after the other, as arrays over all their steps.

    Attributes:
        obs: Observations, float32 [M, Do] (or [M, ...] for images).
        actions: Actions, float32 [M, Da].
        ends: Where each episode ends (one past its last step), int64 [E], increasing, the last one M.
        tasks: Task id of each episode, int64 [E].
    """

    obs: np.ndarray
    actions: np.ndarray
    ends: np.ndarray
    tasks: np.ndarray

    def __post_init__(self) -> None:
        if len(self.obs) != len(self.actions) or len(self.ends) != len(self.tasks) or not len(self.ends):
            raise InputError(
                f"episodes need one action per observation and one task per end, got {len(self.obs)} "
                f"observations, {len(self.actions)} actions, {len(self.ends)} ends, {len(self.tasks)} tasks"
            )
        if self.ends[-1] != len(self.obs) or (np.diff(self.ends, prepend=0) <= 0).any():
            raise InputError("episode ends must increase and the last one must be the number of steps")

    @property
    def starts(self) -> np.ndarray:
        """Where each episode begins, int64 [E]."""
        return np.concatenate(([0], self.ends[:-1]))

    def save(self, path: str | Path) -> None:
        """Write the arrays to an npz file."""
        arrays = {"obs": self.obs, "actions": self.actions, "ends": self.ends, "tasks": self.tasks}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Episodes":
        """Read an npz file of `save`; nothing pickled is loaded.

        Raises:
            InputError: When the file is missing or an array is.
        """
        return cls(**read_arrays(path, "obs", "actions", "ends", "tasks"))


def window_indices(
    ends: Sequence[int] | np.ndarray, spec: ChunkSpec, pad_after: int | None = None
) -> np.ndarray:
    """Return the steps that each training window covers; episodes are padded by their first and last step.

    Args:
        ends: Ends of the episodes, increasing.
        spec: The windows' shape; `To - 1` steps are padded before an episode.
        pad_after: Steps padded after an episode, by default the published `Ta - 1`. With `Tp - To` every step
            is the current one of some window, which short episodes need: by default the last `Tp - To - Ta + 1`
            steps never are.

    Returns:
        int64 [W, horizon]. An episode of length n gives n + To - 1 + pad_after - Tp + 1 windows, none if that is
        negative.

    Raises:
        InputError: When `pad_after` is negative or above `Tp - 1`.
    """
    after = spec.n_action_steps - 1 if pad_after is None else pad_after
    check_number("pad_after", after, low=0, high=spec.horizon - 1, integer=True)
    ends = np.asarray(ends, np.int64)
    rows, start = [], 0
    for end in ends.tolist():
        first = start - (spec.n_obs_steps - 1)
        last = end + after - spec.horizon
        begins = np.arange(first, max(first, last + 1))
        rows.append(np.clip(begins[:, None] + np.arange(spec.horizon), start, end - 1))
        start = end
    return np.concatenate(rows) if rows else np.empty((0, spec.horizon), np.int64)


def windows(episodes: Episodes, spec: ChunkSpec, pad_after: int | None = None) -> dict[str, Tensor]:
    """Return training windows: `obs` [W, To, Do] and `action` [W, Tp, Da], float32.

    Args:
        episodes: The episodes.
        spec: The windows' shape.
        pad_after: See `window_indices`.

    Raises:
        InputError: When no episode is long enough for a window or `pad_after` is out of range.
    """
    index = window_indices(episodes.ends, spec, pad_after)
    if not len(index):
        raise InputError(f"no episode is long enough for a window of horizon {spec.horizon}")
    obs = np.ascontiguousarray(episodes.obs[index[:, : spec.n_obs_steps]], np.float32)
    actions = np.ascontiguousarray(episodes.actions[index], np.float32)
    return {"obs": torch.from_numpy(obs), "action": torch.from_numpy(actions)}


def shift(prediction: Tensor, n: int = 1) -> Tensor:
    """Return a prediction [B, T, Da] moved n steps on in time, its last entry repeated n times.

    Raises:
        InputError: When n is not in 0 to T.
    """
    check_number("n", n, low=0, high=prediction.shape[1], integer=True)
    return torch.cat((prediction[:, n:], prediction[:, -1:].expand(-1, n, -1)), dim=1)
