"""The options of lmd; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated

from noiseworks.core.options import Options, at_least, at_most


@dataclass(frozen=True)
class Blending(Options):
    """How two tensors are blended.

    Attributes:
        weight: Share of the second tensor.
    """

    weight: Annotated[float, at_least(0), at_most(1)] = 0.5
