"""The learning rate of both trainings."""

import math
from collections.abc import Callable


def warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Return the factor of the rate at a step: a linear warm-up, then half a cosine to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0)))

    return factor
