"""Bubbling Union Algorithm: volatile blocks are computed whenever a feed-forward block further on is.

A feed-forward block that is computed while what flows into it is stale takes over the error of all blocks
before it (section 3.3). So the blocks that change most from step to step also update at its steps.
"""

from collections.abc import Sequence

import numpy as np
from noiseworks.bac.options import Scope
from noiseworks.core.checks import check_choice, check_number

FEED_FORWARD = "ff"


def most_volatile(
    volatility: Sequence[float], kinds: Sequence[str], count: int, scope: Scope = "all"
) -> list[int]:
    """Return the blocks whose outputs change most, the most volatile first; ties take the earlier block.

    Args:
        volatility: Mean change of each block, see `FeatureProfile`.
        kinds: Kind of each block.
        count: How many, 0 to the number of candidates.
        scope: `all` blocks, or feed-forward blocks only (`ffn`).

    Raises:
        InputError: When the count or the scope is out of range.
    """
    check_choice("bubble_scope", scope, ("all", "ffn"))
    candidates = [i for i, kind in enumerate(kinds) if scope == "all" or kind == FEED_FORWARD]
    check_number("bubble", count, low=0, high=len(candidates), integer=True)
    order = np.argsort([-volatility[i] for i in candidates], kind="stable")
    return [candidates[i] for i in order[:count]]


def bubble_union(
    schedules: Sequence[Sequence[int]], kinds: Sequence[str], layers: Sequence[int], selected: Sequence[int]
) -> list[list[int]]:
    """Return schedules in which every selected block joins the feed-forward blocks of its layer and deeper ones.

    C(u) <- C(u) united with C(v) for all feed-forward blocks v in layers >= that of u. The unions are taken of
    the schedules as they came, so the order of `selected` does not matter.

    Args:
        schedules: Steps at which each block is computed.
        kinds: Kind of each block; `ff` is feed-forward.
        layers: Layer of each block.
        selected: U, indices of the volatile blocks.
    """
    out = [sorted(set(schedule)) for schedule in schedules]
    for u in selected:
        steps = set(schedules[u])
        for v, kind in enumerate(kinds):
            if kind == FEED_FORWARD and layers[v] >= layers[u]:
                steps |= set(schedules[v])
        out[u] = sorted(steps)
    return out
