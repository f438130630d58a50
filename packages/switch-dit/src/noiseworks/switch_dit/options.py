"""The options of the experts; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least, below


@dataclass(frozen=True)
class Switch(Options):
    """The experts before every block, and the prior that their gates are drawn to.

    Attributes:
        num_experts: Experts E of a block.
        top_k: Experts k that a timestep uses.
        prior_weight: Weight of the diffusion prior loss; 0 for none.
        prior_alpha: Shape of the prior's sliding window, α.
        renormalize: Whether the gates of the chosen experts are scaled to sum 1; the paper's are not.
        num_tasks: Training timesteps T.
        match_every: Steps between two matchings of experts and prior; 1 is the paper's.
    """

    num_experts: Annotated[int, at_least(2)] = 3
    top_k: Annotated[int, at_least(1)] = 2
    prior_weight: Annotated[float, at_least(0)] = 1.0
    prior_alpha: Annotated[float, at_least(0), below(1e6)] = 4.0
    renormalize: bool = False
    num_tasks: Annotated[int, at_least(2)] = 1000
    match_every: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse more chosen experts than there are.

        Raises:
            InputError: Naming both numbers.
        """
        if self.top_k > self.num_experts:
            raise InputError(f"top_k must be at most num_experts ({self.num_experts}), got {self.top_k}")
