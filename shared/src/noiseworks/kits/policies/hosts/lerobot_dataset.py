"""Roll-outs of any policy as a dataset of LeRobot's, by LeRobot's own writer: to look at, to train on, to share.

A folder of `rollouts` is read by `LeRobotDataset(name, root=folder)`. An episode is what the policy did from a reset to
success or the limit of steps; a frame holds what it saw, the action that was executed, and of the step that followed
`next.reward`, `next.success` and `next.done`. Numbers are float32 as the policy had them, pictures PNG: no bit is lost.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from noiseworks.core.artifacts import FolderKind, atomic_directory, check_folder
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.protocols import BatchEnv, Step

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

# A dataset is costly: no folder of any kind is replaced.
FOLDER = FolderKind("an empty folder", ())
_OUTCOMES = {"next.reward": "float32", "next.success": "bool", "next.done": "bool"}


class DescribedEnv(BatchEnv, Protocol):
    """Environments that say how fast they run and, in words, what is to be done.

    Attributes:
        fps: Steps in a second.
    """

    fps: int

    def instruction(self, task: int) -> str:
        """Return a task in words."""
        ...


def check_dataset(path: str | Path) -> Path:
    """Return the folder of a dataset that is going to be made; to be called before any work.

    Args:
        path: The folder, which must not hold anything.

    Raises:
        InputError: When the folder cannot be made, holds something, or LeRobot or its datasets are not installed.
    """
    if missing := [name for name in ("lerobot", "datasets", "av") if find_spec(name) is None]:
        raise InputError(
            f"a dataset in LeRobot's format is written by LeRobot, which lacks {', '.join(missing)} here: pip install "
            "'noiseworks-core[lerobot]' 'lerobot[dataset]'"
        )
    return check_folder(path, FOLDER)


@contextmanager
def rollouts(path: str | Path, env: DescribedEnv, tasks: Sequence[int]) -> Iterator["Rollouts"]:
    """Yield what `evaluate` tells of every step; the dataset stands under its name when the block ends.

    Args:
        path: The folder to make.
        env: The environments.
        tasks: Task of each episode.

    Raises:
        InputError: When the folder holds something.
    """
    with atomic_directory(path, FOLDER) as made:
        kept = Rollouts(made / "dataset", Path(path).name, env, tasks)
        try:
            yield kept
        finally:
            kept.close()
        for part in (made / "dataset").iterdir():
            part.rename(made / part.name)
        (made / "dataset").rmdir()


class Rollouts:
    """Writes episodes in the order of their list, as they end; made by `rollouts`.

    Args:
        folder: The dataset's folder, which does not exist.
        name: Of the dataset.
        env: The environments.
        tasks: Task of each episode.
    """

    def __init__(self, folder: Path, name: str, env: DescribedEnv, tasks: Sequence[int]) -> None:
        self._place, self._env = (folder, name), env
        self._texts = [env.instruction(int(task)) for task in tasks]
        self._frames: dict[int, list[dict[str, Any]]] = {}
        self._ended: set[int] = set()
        self._next = 0
        self._dataset: LeRobotDataset | None = None

    def add(
        self,
        numbers: np.ndarray,
        obs: Mapping[str, np.ndarray],
        actions: np.ndarray,
        step: Step,
        rows: np.ndarray,
    ) -> None:
        """Keep a step of the running episodes, and write those that are over and whose turn it is.

        Args:
            numbers: Their numbers in the list, int [n].
            obs: What the policy saw of them before the step, arrays [n, ...].
            actions: What was executed, [n, Da].
            step: What the environments returned.
            rows: Places of the episodes in it, int [n].
        """
        seen = entries(obs)
        over = (step.terminated | step.truncated)[rows]
        for i, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            frame = {name: value[i].copy() for name, value in seen.items()}
            frame["action"] = actions[i].astype(np.float32)
            outcome = (step.reward[row], step.terminated[row], over[i])
            for (name, dtype), value in zip(_OUTCOMES.items(), outcome, strict=True):
                frame[name] = np.array([value], dtype)
            self._frames.setdefault(number, []).append(frame)
            if over[i]:
                self._ended.add(number)
        while self._next in self._ended:
            self._write(self._frames.pop(self._next), self._texts[self._next])
            self._next += 1

    def _write(self, frames: list[dict[str, Any]], text: str) -> None:
        with redirect_stdout(sys.stderr):  # LeRobot prints what it does
            if self._dataset is None:
                self._dataset = self._create(frames[0])
            for frame in frames:
                self._dataset.add_frame(frame | {"task": text})
            self._dataset.save_episode()

    def _create(self, frame: Mapping[str, np.ndarray]) -> "LeRobotDataset":
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        folder, name = self._place
        features = {
            key: {
                "dtype": "image" if value.dtype == np.uint8 else str(value.dtype),
                "shape": value.shape,
                "names": ["height", "width", "channels"] if value.dtype == np.uint8 else None,
            }
            for key, value in frame.items()
        }
        return LeRobotDataset.create(name, self._env.fps, features, root=folder, use_videos=False)

    def close(self) -> None:
        """Finish the files, without which they cannot be read."""
        if self._dataset is not None:
            self._dataset.finalize()


def entries(obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return an observation's entries as LeRobot names and holds them.

    - Names that begin with `observation.` are LeRobot's own; then `obs`, which is their parts joined, is left out. Else
      `obs` is `observation.state`, and any other `x` is `observation.x`.
    - Pictures [n, C, H, W], uint8 or numbers of 0 to 1, become uint8 [n, H, W, C], all else float32 [n, D]: LeRobot
      has no statistics of other arrays.
    """
    own = any(name.startswith("observation.") for name in obs)
    kept = {}
    for name, value in obs.items():
        if name == "obs" and own:
            continue
        if value.ndim == 4 and "image" in name:
            whole = value if value.dtype == np.uint8 else np.rint(255 * value).astype(np.uint8)
            stored = np.ascontiguousarray(whole.transpose(0, 2, 3, 1))
        else:
            stored = value.reshape(len(value), -1).astype(np.float32)
        part = "state" if name == "obs" else name.removeprefix("observation.")
        kept[f"observation.{part}"] = stored
    return kept
