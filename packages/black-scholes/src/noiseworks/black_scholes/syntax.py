"""The prompt syntax that image programs share: `a [red|blue] car` and `a [cat:dog:0.3]`."""

import re

from noiseworks.black_scholes.policies import Alternating, BlendPolicy, StepSwitch
from noiseworks.core.errors import InputError

_GROUP = re.compile(r"\[([^\[\]]+)\]")


def parse_prompt(text: str) -> tuple[list[str], BlendPolicy | None]:
    """Return the concepts of a prompt, and the policy that its syntax asks for.

    `[a|b]` takes turns in every step, with as many parts as wanted. `[a:b:when]` changes from a to b at a share of the
    steps, 0 to 1. A prompt without brackets is one concept and no policy.

    Args:
        text: A prompt with at most one group in brackets.

    Raises:
        InputError: When there are several groups, or one that is neither form.
    """
    groups = _GROUP.findall(text)
    if not groups and not set("[]") & set(text):
        return [text], None
    if len(groups) != 1 or set("[]") & set(_GROUP.sub("", text)):
        raise InputError(f"{text!r} must hold one group in brackets, such as a [red|blue] car")
    (group,) = groups
    parts, policy = group.split("|"), Alternating()
    if len(parts) == 1:
        *parts, when = group.split(":")
        try:
            share = float(when)
        except ValueError:
            share = -1.0
        if len(parts) != 2 or not 0 <= share <= 1:
            raise InputError(
                f"[{group}] is neither [a|b] nor [a:b:when] with a share of the steps from 0 to 1"
            )
        policy = StepSwitch((share,))
    return [" ".join(_GROUP.sub(lambda _, part=part: part, text).split()) for part in parts], policy


def parse_prompts(lines: list[str]) -> tuple[list[list[str]], BlendPolicy]:
    """Return the concepts of each line and the policy that all of them ask for.

    Raises:
        InputError: When a line has no brackets, or asks for another policy or number of concepts than the first.
    """
    parsed = [parse_prompt(line) for line in lines]
    for line, (concepts, policy) in zip(lines, parsed, strict=True):
        if policy is None:
            raise InputError(f"{line!r} has no brackets: write a [red|blue] car, or choose a policy")
        if policy != parsed[0][1] or len(concepts) != len(parsed[0][0]):
            raise InputError(f"{line!r} asks for something else than {lines[0]!r}: draw them apart")
    return [concepts for concepts, _ in parsed], parsed[0][1]
