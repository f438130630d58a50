"""The options of task routing; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below

Kind = Literal["window", "random"]


@dataclass(frozen=True)
class Routing(Options):
    """Which channels a timestep uses.

    Attributes:
        alpha: Shape of the shift: 1 slides evenly; above, slowly at low noise and fast at high noise.
        beta: Share of the channels that are on; 1 is the host itself.
        num_tasks: Training timesteps T.
        kind: window, channels side by side; or random, drawn for every timestep and block, to compare with.
        routing_seed: Of the random masks.
    """

    alpha: Annotated[float, at_least(0), below(1e6)] = 4.0
    beta: Annotated[float, above(0), at_most(1)] = 0.8
    num_tasks: Annotated[int, at_least(2)] = 1000
    kind: Kind = "window"
    routing_seed: Annotated[int, at_least(0), below(2**62)] = 0

    def active(self, channels: int) -> int:
        """Return n, the number of channels of C that are on: `C β`, cut off to a whole number.

        Raises:
            InputError: When none is left.
        """
        n = int(channels * self.beta)
        if n == 0:
            raise InputError(
                f"beta {self.beta} leaves none of {channels} channels on; use at least {1 / channels:.3g}"
            )
        return n
