"""The environments that policies act in, by name."""

from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.protocols import BatchEnv

METAWORLD = "metaworld:"


def make_env(name: str, num_envs: int, *, disturb: bool = False, latency: int = 0) -> BatchEnv:
    """Return environments that step together.

    Args:
        name: `tabletop`, or `metaworld:TASK` such as `metaworld:reach-v3`, which needs the extra `[metaworld]`.
        num_envs: How many.
        disturb: Whether free discs of `tabletop` jump now and then.
        latency: Steps, 0 to 4, by which an action acts late on `tabletop`.

    Raises:
        InputError: When the name is unknown, an option is not the environment's or a number is out of range.
    """
    if name.startswith(METAWORLD):
        from noiseworks.bench.testbeds.metaworld import MetaWorldBatch

        if disturb or latency:
            raise InputError("disturb and latency are tabletop's; leave them out for Meta-World")
        return MetaWorldBatch(num_envs, name.removeprefix(METAWORLD))
    from noiseworks.bench.testbeds.tabletop import TabletopBatch

    if name != "tabletop":
        check_choice("env", name, ("tabletop", f"{METAWORLD}TASK"))
    return TabletopBatch(num_envs, disturb=disturb, latency=latency)
