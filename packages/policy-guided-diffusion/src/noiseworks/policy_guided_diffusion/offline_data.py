"""Recorded experience and environments by name: a folder, a Minari data set, or the testbed maze."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import InputError
from noiseworks.policy_guided_diffusion.options import Recorded

if TYPE_CHECKING:
    from noiseworks.kits.rl.transitions import Transitions

MAZE, MINARI = "maze:", "minari:"


def check_data(name: str) -> None:
    """Refuse a name that is neither a folder of transitions nor one of the two prefixes with something behind.

    Raises:
        InputError: Saying what a name may be.
    """
    if any(name.startswith(prefix) and len(name) > len(prefix) for prefix in (MAZE, MINARI)):
        return
    if not (Path(name) / "config.json").is_file():
        raise InputError(
            f"no data at {name!r}: name a folder of transitions, {MAZE}<layout>-<behaviour> such as "
            f"{MAZE}umaze-medium, or {MINARI}<id of a data set on disk>"
        )


def load_data(recorded: Recorded) -> "Transitions":
    """Return recorded experience.

    Args:
        recorded: Its name, and how much of a maze's behaviour is recorded.

    Raises:
        InputError: When it cannot be found, or an extra is missing.
    """
    from noiseworks.kits.rl.transitions import Transitions

    name = recorded.data
    check_data(name)
    if name.startswith(MINARI):
        from noiseworks.kits.rl.minari import from_minari

        return from_minari(name.removeprefix(MINARI))
    if name.startswith(MAZE):
        layout, _, behaviour = name.removeprefix(MAZE).partition("-")
        return _maze().record(
            layout, behaviour, recorded.record_steps, recorded.record_seed, reward=recorded.reward
        )
    return Transitions.load(name)


def maze_env(recorded: Recorded, num_envs: int) -> tuple[Any, tuple[float, float]] | None:
    """Return the mazes that data come from and the returns that normalise scores; None for other data."""
    if not recorded.data.startswith(MAZE):
        return None
    layout = recorded.data.removeprefix(MAZE).partition("-")[0]
    references = _maze().references(layout, recorded.reward)
    from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv

    return MazeVectorEnv(num_envs, layout, reward=recorded.reward), references


def _maze() -> Any:
    try:
        from noiseworks.bench.testbeds import maze
    except ImportError:
        raise InputError(
            "the testbed maze needs the extra [bench]: pip install 'noiseworks-policy-guided-diffusion[bench]'"
        ) from None
    return maze
