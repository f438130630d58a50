"""Recorded experience and environments by name: folders, Minari, Gymnasium, or the testbed maze."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.models import testbed
from noiseworks.kits.rl.options import GYM, MAZE, MINARI, Recorded, World
from noiseworks.kits.rl.transitions import Transitions, concatenate


def load_data(recorded: Recorded, *, needs: str) -> Transitions:
    """Return recorded experience.

    Args:
        recorded: Its name, and how much of a maze's behaviour is recorded.
        needs: The method that asks, whose extra [bench] brings the maze.

    Raises:
        InputError: When it cannot be found, or an extra is missing.
    """
    name = recorded.data
    if name.startswith(MINARI):
        from noiseworks.kits.rl.minari import from_minari

        return from_minari(name.removeprefix(MINARI))
    if not name.startswith(MAZE):
        return Transitions.load(name)
    layout, _, behaviours = name.removeprefix(MAZE).partition("-")
    maze, parts = testbed("maze", needs=needs), behaviours.split("+")
    if len(set(parts)) != len(parts):
        raise InputError(
            f"data name a behaviour twice: {name!r}; episodes of one seed would be recorded again"
        )
    shares = [
        recorded.record_steps // len(parts) + (i < recorded.record_steps % len(parts))
        for i in range(len(parts))
    ]
    made = [
        maze.record(
            layout,
            part,
            max(share, 1),
            recorded.record_seed,
            reward=recorded.reward,
            max_steps=recorded.record_limit,
        )
        for part, share in zip(parts, shares, strict=True)
    ]
    return concatenate(made, {**made[0].about, "behaviour": behaviours})


def make_env(world: World, num_envs: int, *, needs: str, chunk: int | None = None) -> VectorEnv:
    """Return a vector environment that begins episodes in the step of an end.

    Args:
        world: The environment's name, limit of steps and reward.
        num_envs: How many.
        needs: The method that asks, whose extra [bench] brings the maze.
        chunk: Actions that one step plays, whose actions are then [chunk, Da]; None for single ones.

    Raises:
        InputError: When the name is unknown or an extra is missing.
    """
    if world.env.startswith(MAZE):
        maze = testbed("maze.environment", needs=needs)
        layout = world.env.removeprefix(MAZE)
        return maze.MazeVectorEnv(
            num_envs, layout, reward=world.reward, max_steps=world.episode_steps, chunk=chunk
        )
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
    from noiseworks.kits.rl.stepping import ActionChunk

    def make() -> gymnasium.Env:
        try:
            one = gymnasium.make(world.env.removeprefix(GYM), max_episode_steps=world.episode_steps)
        except gymnasium.error.Error as error:
            raise InputError(f"Gymnasium cannot make {world.env!r}: {first_line(error)}") from None
        return one if chunk is None else ActionChunk(one, chunk)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def world_of(recorded: Recorded) -> World | None:
    """Return the maze that data come from; None for other data."""
    if not recorded.data.startswith(MAZE):
        return None
    layout = recorded.data.removeprefix(MAZE).partition("-")[0]
    return World(f"{MAZE}{layout}", recorded.record_limit, recorded.reward)


def references_of(world: World, *, needs: str) -> tuple[float, float] | None:
    """Return the returns of the random policy and of the expert, which normalise scores; None where none are known."""
    if not world.env.startswith(MAZE):
        return None
    maze: Any = testbed("maze", needs=needs)
    try:
        return maze.references(world.env.removeprefix(MAZE), world.reward, world.episode_steps)
    except InputError:
        return None


def write_paths(paths: Path | None, env: str, episodes: Sequence[np.ndarray], *, needs: str) -> None:
    """Draw the paths of episodes in a maze, from blue at the start to red at the end; nothing where no file is named.

    Args:
        paths: The file, .png or .webp, that `check_paths` has passed.
        env: The maze.
        episodes: Observations of each, [L, Do], whose first two columns are the place.
        needs: The method that asks, whose extra [bench] brings the maze and `noiseworks.kits.pictures` its files.
    """
    if paths is None:
        return
    from noiseworks.kits.pictures import write_picture

    maze = testbed("maze", needs=needs)
    write_picture(maze.draw_paths(maze.make_layout(env.removeprefix(MAZE)), episodes), paths)


def check_widths(env: VectorEnv, obs_dim: int, action_dim: int, what: str) -> None:
    """Refuse an environment of another task than a policy or data.

    Args:
        env: The environment.
        obs_dim: Width of an observation that is read.
        action_dim: Width of an action.
        what: What reads them, for the message.

    Raises:
        InputError: Naming both spaces.
    """
    seen, act = env.single_observation_space.shape, env.single_action_space.shape
    if seen != (obs_dim,) or not act or act[-1] != action_dim:
        raise InputError(
            f"{what} reads observations ({obs_dim},) and gives actions ({action_dim},); the environment has {seen} "
            f"and {act}: name the task that it was made for"
        )
