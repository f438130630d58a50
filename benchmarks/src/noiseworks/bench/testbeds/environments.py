"""The environments that policies act in, and their demonstrations, by name."""

from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes
from noiseworks.kits.policies.protocols import BatchEnv

TABLETOP, METAWORLD, PUSHT = "tabletop", "metaworld:", "pusht"


def make_env(
    name: str,
    num_envs: int,
    *,
    disturb: bool = False,
    latency: int = 0,
    image_size: int | None = None,
    depth: bool = False,
) -> BatchEnv:
    """Return environments that step together.

    Args:
        name: `tabletop`; `metaworld:TASK` such as `metaworld:reach-v3`, which needs the extra `[metaworld]`; or
            `pusht`, `pusht:keypoints` or `pusht:pixels`, which need the extra `[pusht]`.
        num_envs: How many.
        disturb: Whether free discs of `tabletop`, or the T of `pusht`, jump now and then.
        latency: Steps, 0 to 4, by which an action acts late on `tabletop`.
        image_size: Side of the pictures that `tabletop` shows beside its state; None for none.
        depth: Whether it shows depth maps as well.

    Raises:
        InputError: When the name is unknown, an option is not the environment's or a number is out of range.
    """
    kind, _, observation = name.partition(":")
    if image_size is not None and name != TABLETOP:
        raise InputError(f"cameras are tabletop's, got {name}")
    if kind == PUSHT:
        from noiseworks.bench.testbeds.pusht import PushTBatch

        if latency:
            raise InputError("latency is tabletop's; leave it out for Push-T")
        return PushTBatch(num_envs, observation or "state", disturb=disturb)
    if name.startswith(METAWORLD):
        from noiseworks.bench.testbeds.metaworld import MetaWorldBatch

        if disturb or latency:
            raise InputError("disturb and latency are tabletop's; leave them out for Meta-World")
        return MetaWorldBatch(num_envs, name.removeprefix(METAWORLD))
    from noiseworks.bench.testbeds.tabletop import TabletopBatch

    if name != TABLETOP:
        check_choice("env", name, (TABLETOP, f"{METAWORLD}TASK", PUSHT))
    return TabletopBatch(num_envs, disturb=disturb, latency=latency, image_size=image_size, depth=depth)


def load_demonstrations(name: str, episodes: int, seed: int = 0) -> Episodes:
    """Return demonstrations of an environment's scripted experts.

    Args:
        name: `tabletop` or `metaworld:TASK`.
        episodes: How many, of each task of `tabletop`.
        seed: Which demonstrations, 0 to 99.

    Raises:
        InputError: When the environment is unknown or has no expert.
    """
    if name.partition(":")[0] == PUSHT:
        raise InputError(
            "Push-T has no scripted expert and its package brings no demonstrations: name an npz file of your own "
            "episodes with obs, actions, ends and tasks"
        )
    if name.startswith(METAWORLD):
        from noiseworks.bench.testbeds import metaworld

        return metaworld.demonstrations(name.removeprefix(METAWORLD), episodes, seed)
    from noiseworks.bench.testbeds import tabletop

    if name != TABLETOP:
        check_choice("demonstrations", name, (TABLETOP, f"{METAWORLD}TASK"))
    return tabletop.demonstrations(episodes, seed)
