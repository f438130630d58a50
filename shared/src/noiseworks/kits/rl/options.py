"""Options that commands of reinforcement learning share; nothing heavy is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least, at_most, below
from noiseworks.core.output import check_file

MAZE, GYM, MINARI = "maze:", "gym:", "minari:"
Reward = Literal["sparse", "step_cost"]
PATHS_SHOWN = 16


@dataclass(frozen=True)
class Recorded(Options):
    """Recorded experience, and how much of a maze's scripted behaviour is recorded.

    Attributes:
        data: A folder of transitions, maze:<layout>-<behaviour> such as maze:umaze-medium, several of those with +
            between (maze:umaze-expert+medium), or minari:<id>.
        record_steps: Steps, shared equally by several behaviours.
        record_seed: Which episodes.
        record_limit: Limit of steps of the maze's episodes; by default the layout's own.
        reward: Reward of the maze, sparse or step_cost.
    """

    data: str
    record_steps: Annotated[int, at_least(1)] = 50_000
    record_seed: Annotated[int, at_least(0), at_most(999)] = 0
    record_limit: Annotated[int | None, at_least(1)] = None
    reward: Reward = "sparse"

    def check(self) -> None:
        """Refuse a name that is neither a folder of transitions nor one of the prefixes with something behind.

        Raises:
            InputError: Saying what a name may be.
        """
        if _prefixed(self.data, MAZE, MINARI) or (Path(self.data) / "config.json").is_file():
            return
        raise InputError(
            f"no data at {self.data!r}: name a folder of transitions, {MAZE}<layout>-<behaviour> such as "
            f"{MAZE}umaze-medium, or {MINARI}<id of a data set on disk>"
        )


@dataclass(frozen=True)
class World(Options):
    """Where a policy acts.

    Attributes:
        env: maze:<layout> such as maze:fork, or gym:<id> of Gymnasium.
        episode_steps: Limit of steps of an episode; by default the environment's own.
        reward: Reward of a maze: step_cost, -1 a step until the goal; or sparse, 1 a step near it.
    """

    env: str
    episode_steps: Annotated[int | None, at_least(1)] = None
    reward: Reward = "step_cost"

    def check(self) -> None:
        """Refuse a name without one of the two prefixes.

        Raises:
            InputError: Saying what a name may be.
        """
        if not _prefixed(self.env, MAZE, GYM):
            raise InputError(
                f"no environment {self.env!r}: name {MAZE}<layout> such as {MAZE}fork, or {GYM}<Gymnasium's id>"
            )


@dataclass(frozen=True)
class Episodes(Options):
    """How a policy is evaluated.

    Attributes:
        episodes: Episodes.
        together: Environments that act together.
        evaluation_seed: Of starts and of the policy's noise.
    """

    episodes: Annotated[int, at_least(1)] = 100
    together: Annotated[int, at_least(1)] = 50
    evaluation_seed: Annotated[int, at_least(0), below(2**31)] = 10_000


def check_paths(paths: Path | None, env: str) -> int:
    """Refuse a picture of paths that cannot be made, before any work.

    Args:
        paths: The file, .png or .webp; none for no picture.
        env: The environment.

    Returns:
        How many episodes the picture will show; 0 where none is wanted.

    Raises:
        InputError: When the file cannot be written or the environment is no maze.
    """
    if paths is None:
        return 0
    check_file(paths, (".png", ".webp"))
    if not _prefixed(env, MAZE):
        raise InputError(f"paths are drawn in mazes ({MAZE}<layout>) only, got env {env!r}")
    return PATHS_SHOWN


def _prefixed(name: str, *prefixes: str) -> bool:
    return any(name.startswith(prefix) and len(name) > len(prefix) for prefix in prefixes)
