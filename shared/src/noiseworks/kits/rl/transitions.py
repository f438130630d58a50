"""Recorded experience as contiguous arrays, its rules, and the views that learners read: episodes, windows, chunks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from noiseworks.core.artifacts import CONFIG_NAME, WEIGHTS_NAME, atomic_directory
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import ArtifactError, InputError

KIND, VERSION = "noiseworks-transitions", 1
Starts = Literal["inside", "strict", "anchored"]


@dataclass(frozen=True)
class Transitions:
    """N steps of one or more episodes, in order; an episode is a run of rows that ends where one of the flags is set.

    Attributes:
        observations: float32 [N, Do].
        actions: float32 [N, Da].
        rewards: float32 [N].
        next_observations: float32 [N, Do]; a last step's is the true final observation, not the next episode's first.
        terminals: bool [N], the task ended here: what follows is worth nothing.
        timeouts: bool [N], the recording ended here though the task did not: learners bootstrap over it.
        about: Where it comes from, for JSON: environment, behaviour, seed, reward mode and so on.

    Raises:
        InputError: When lengths or types differ, a step both terminates and times out, a value is not finite, or the
            last step ends no episode.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("observations", "actions", "rewards", "next_observations"):
            array = np.ascontiguousarray(getattr(self, name), np.float32)
            if not np.isfinite(array).all():
                raise InputError(f"{name} hold NaN or infinity")
            object.__setattr__(self, name, array)
        for name in ("terminals", "timeouts"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), bool))
        lengths = {name: len(array) for name, array in self.arrays().items()}
        if len(set(lengths.values())) != 1 or not len(self.rewards):
            raise InputError(f"all arrays must have the same length of at least 1, got {lengths}")
        if self.observations.ndim != 2 or self.actions.ndim != 2 or self.rewards.ndim != 1:
            raise InputError(
                f"observations and actions must be [N, D] and rewards [N], got {self.observations.shape}, "
                f"{self.actions.shape} and {self.rewards.shape}"
            )
        if self.next_observations.shape != self.observations.shape:
            raise InputError("next_observations must have the observations' shape")
        if (both := np.flatnonzero(self.terminals & self.timeouts)).size:
            raise InputError(f"a step may not both terminate and time out, step {both[0]} does")
        if not (self.terminals[-1] or self.timeouts[-1]):
            raise InputError(
                "the last step must end its episode: set its timeout where the recording was cut"
            )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def obs_dim(self) -> int:
        """Width of an observation."""
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        """Width of an action."""
        return self.actions.shape[1]

    @property
    def ends(self) -> np.ndarray:
        """The row after each episode's last, int64 [E]."""
        return np.flatnonzero(self.terminals | self.timeouts) + 1

    @property
    def begins(self) -> np.ndarray:
        """Each episode's first row, int64 [E]."""
        return np.concatenate(([0], self.ends[:-1]))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "about"}

    def returns(self) -> np.ndarray:
        """Return each episode's undiscounted sum of rewards, float64 [E]."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.begins)

    def returns_to_go(self) -> np.ndarray:
        """Return the undiscounted rewards from each step to its episode's end, float64 [N]."""
        total = np.cumsum(self.rewards.astype(np.float64))
        last = np.repeat(self.ends - 1, self.ends - self.begins)
        return total[last] - total + self.rewards

    def episodes(self, which: Sequence[int] | np.ndarray) -> "Transitions":
        """Return some episodes, in the given order."""
        begins, ends = self.begins, self.ends
        rows = np.concatenate([np.arange(begins[i], ends[i]) for i in which])
        return replace(self, **{name: array[rows] for name, array in self.arrays().items()})

    def windows(self, length: int, stride: int = 1, starts: Starts = "inside") -> np.ndarray:
        """Return the rows at which windows of `length` steps begin that lie inside one episode.

        Args:
            length: Steps of a window, at least 1.
            stride: Every how many valid starts one is kept.
            starts: `inside`, the window may hold an episode's last step; `strict`, a step of the episode follows it;
                `anchored`, as trajectory diffusion wants it: of the windows inside, each `stride`-th, all that begin an
                episode and all that end in a terminal, but none that ends in a timeout.

        Returns:
            Rows, int64 [W], ascending.

        Raises:
            InputError: When a number is out of range or no window remains.
        """
        check_number("length", length, low=1, integer=True)
        check_number("stride", stride, low=1, integer=True)
        check_choice("starts", starts, ("inside", "strict", "anchored"))
        room = length + (starts == "strict")
        valid = np.concatenate(
            [np.arange(a, b - room + 1) for a, b in zip(self.begins, self.ends, strict=True)]
        )
        if starts == "anchored":
            chosen = np.zeros(len(self) + 1, bool)
            chosen[valid[::stride]] = True
            chosen[np.intersect1d(valid, self.begins)] = True
            chosen[valid[self.terminals[valid + length - 1]]] = True
            chosen[valid[self.timeouts[valid + length - 1]]] = False
            valid = np.flatnonzero(chosen)
        else:
            valid = valid[::stride]
        if not len(valid):
            longest = int((self.ends - self.begins).max())
            raise InputError(f"no window of {length} steps fits: the longest episode has {longest}")
        return valid.astype(np.int64)

    def chunked(self, chunk: int, stride: int | None = None) -> "Transitions":
        """Return every run of `chunk` steps as one step: actions side by side, rewards summed.

        A run that meets its episode's end stops there and repeats the last action; flags and next observation are those
        of the run's last step, and discounts count runs.

        Args:
            chunk: Steps of a run, at least 1.
            stride: Steps from one run's begin to the next one's in an episode; by default runs do not overlap.
                Those that do are rows for a learner and no episodes.
        """
        check_number("chunk", chunk, low=1, integer=True)
        stride = chunk if stride is None else stride
        check_number("stride", stride, low=1, integer=True)
        starts, last = [], []
        for a, b in zip(self.begins, self.ends, strict=True):
            starts.append(np.arange(a, b, stride))
            last.append(np.minimum(starts[-1] + chunk, b) - 1)
        first, end = np.concatenate(starts), np.concatenate(last)
        rows = np.minimum(first[:, None] + np.arange(chunk), end[:, None])
        total = np.concatenate(([0.0], np.cumsum(self.rewards, dtype=np.float64)))
        return Transitions(
            self.observations[first],
            self.actions[rows].reshape(len(first), -1),
            total[end + 1] - total[first],
            self.next_observations[end],
            self.terminals[end],
            self.timeouts[end],
            {**self.about, "chunk": chunk},
        )

    def save(self, path: str | Path) -> None:
        """Write a directory of `config.json` and `model.safetensors`, atomically."""
        from safetensors.numpy import save_file

        record = {"kind": KIND, "format_version": VERSION, "about": dict(self.about)}
        with atomic_directory(path, KIND) as folder:
            (folder / CONFIG_NAME).write_text(json.dumps(record, indent=2) + "\n")
            save_file(self.arrays(), folder / WEIGHTS_NAME)

    @classmethod
    def load(cls, path: str | Path) -> "Transitions":
        """Read a directory that `save` wrote.

        Raises:
            ArtifactError: When it is missing, of another kind or incomplete.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = Path(path)
        try:
            record = json.loads((path / CONFIG_NAME).read_text())
            if not isinstance(record, dict):
                raise ArtifactError(f"{path / CONFIG_NAME} holds no object: save the transitions again")
            if (record.get("kind"), record.get("format_version")) != (KIND, VERSION):
                raise ArtifactError(
                    f"{path} holds {record.get('kind')!r}, expected {KIND!r} of version {VERSION}"
                )
            arrays = load_file(path / WEIGHTS_NAME)
        except (OSError, ValueError, SafetensorError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{path} holds no readable transitions: {error}") from error
        wanted = [f.name for f in fields(cls) if f.name != "about"]
        if missing := [name for name in wanted if name not in arrays]:
            raise ArtifactError(
                f"{path} lacks {', '.join(missing)}: transitions are {', '.join(wanted)}; write them with "
                "Transitions.save, or read D4RL's arrays with from_d4rl"
            )
        try:
            return cls(**{name: arrays[name] for name in wanted}, about=record.get("about") or {})
        except InputError as error:
            raise ArtifactError(f"{path} holds no transitions: {error}") from error


def concatenate(parts: Sequence[Transitions], about: Mapping[str, Any] | None = None) -> Transitions:
    """Return several recordings as one.

    Raises:
        InputError: When there is none or their widths differ.
    """
    widths = {(part.obs_dim, part.action_dim) for part in parts}
    if len(widths) != 1:
        raise InputError(
            f"recordings must have the same observations and actions, got widths {sorted(widths)}"
        )
    arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in parts[0].arrays()}
    return Transitions(**arrays, about=dict(about if about is not None else parts[0].about))


def from_d4rl(data: Mapping[str, np.ndarray], about: Mapping[str, Any] | None = None) -> Transitions:
    """Return D4RL's dictionary of arrays, which may lack `next_observations` and `timeouts`, as transitions.

    Without `next_observations` the following row's observation is used. The last step of an episode that timed out then
    has none of its own: the step is dropped and the one before it takes its place, as D4RL's own `qlearning_dataset`
    does. A terminal step keeps its row: what follows is never read.

    Raises:
        InputError: When an array is missing.
    """
    needed = ("observations", "actions", "rewards", "terminals")
    if missing := [name for name in needed if name not in data]:
        raise InputError(f"a D4RL data set needs {', '.join(needed)}; it lacks {', '.join(missing)}")
    terminals = np.asarray(data["terminals"], bool).reshape(-1)
    timeouts = np.asarray(data.get("timeouts", np.zeros(len(terminals))), bool).reshape(-1) & ~terminals
    timeouts[-1] |= not terminals[-1]
    arrays = {name: np.asarray(data[name]) for name in ("observations", "actions")}
    arrays["rewards"] = np.asarray(data["rewards"]).reshape(-1)
    if "next_observations" in data:
        arrays["next_observations"] = np.asarray(data["next_observations"])
        return Transitions(**arrays, terminals=terminals, timeouts=timeouts, about=dict(about or {}))
    following = np.concatenate((arrays["observations"][1:], arrays["observations"][-1:]))
    keep = ~timeouts
    cut = np.concatenate((timeouts[1:], [False])) & ~(terminals | timeouts)
    arrays = {name: array[keep] for name, array in arrays.items()}
    return Transitions(
        **arrays,
        next_observations=following[keep],
        terminals=terminals[keep],
        timeouts=cut[keep],
        about=dict(about or {}),
    )
