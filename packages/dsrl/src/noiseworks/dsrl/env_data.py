"""Environments by name, as stable-baselines3's, whose action is a chunk: the testbed maze, or a Gymnasium id."""

from typing import Any

from noiseworks.core.errors import InputError
from noiseworks.dsrl.options import World

MAZE, GYM = "maze:", "gym:"


def check_env(world: World) -> None:
    """Refuse a name without one of the two prefixes.

    Raises:
        InputError: Saying what a name may be.
    """
    if not any(world.env.startswith(prefix) and len(world.env) > len(prefix) for prefix in (MAZE, GYM)):
        raise InputError(
            f"no environment {world.env!r}: name {MAZE}<layout> such as {MAZE}fork, or {GYM}<Gymnasium's id>"
        )


def make_vector_env(world: World, num_envs: int, chunk: int) -> Any:
    """Return a Gymnasium vector environment whose action is a chunk, and that begins episodes in the step of an end.

    Args:
        world: The environment's name and limit of steps.
        num_envs: How many.
        chunk: Actions of a chunk.

    Raises:
        InputError: When the name is unknown or an extra is missing.
    """
    check_env(world)
    if world.env.startswith(MAZE):
        try:
            from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
        except ImportError:
            raise InputError(
                "the testbed maze needs the extra [bench]: pip install 'noiseworks-dsrl[bench]'"
            ) from None
        layout = world.env.removeprefix(MAZE)
        return MazeVectorEnv(num_envs, layout, reward="step_cost", max_steps=world.max_steps, chunk=chunk)
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
    from noiseworks.kits.rl.stepping import ActionChunk

    def make() -> gymnasium.Env:
        try:
            one = gymnasium.make(world.env.removeprefix(GYM), max_episode_steps=world.max_steps)
        except gymnasium.error.Error as error:
            raise InputError(f"Gymnasium cannot make {world.env!r}: {str(error).splitlines()[0]}") from None
        return ActionChunk(one, chunk)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
