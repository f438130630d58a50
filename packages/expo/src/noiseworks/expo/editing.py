"""The edit policy (section 4.1): a bounded Gaussian correction of a proposed action."""

import math

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.networks import SquashedGaussian
from torch import Tensor, nn

REACHABLE = math.exp(-0.5) / 2  # the scale below which no entropy of -1/2 a dimension can be had


class EditPolicy(nn.Module):
    """e ~ pi_e(. | s, a), an edit within plus and minus beta of each dimension that may be edited.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width D of a decision.
        scale: beta.
        masked: Dimensions of a single action that are never edited.
        chunk: Actions of a decision.
        sizes: Width and number of the hidden layers.

    Raises:
        InputError: When a masked dimension does not exist, or none is left.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        scale: float = 0.15,
        masked: tuple[int, ...] = (),
        chunk: int = 1,
        sizes: tuple[int, int] = (256, 3),
    ) -> None:
        super().__init__()
        check_number("edit_scale", scale, low=0, high=2, low_open=True)
        single = action_dim // chunk
        if any(not 0 <= dim < single for dim in masked):
            raise InputError(f"masked dimensions must lie in 0 to {single - 1}, got {list(masked)}")
        edited = torch.ones(single)
        edited[list(masked)] = 0.0
        if not bool(edited.any()):
            raise InputError("all dimensions are masked: nothing is left to edit")
        self.scale, self.net = scale, SquashedGaussian(obs_dim + action_dim, action_dim, *sizes)
        self.register_buffer("edited", edited.repeat(chunk), persistent=False)

    @property
    def dims(self) -> int:
        """Dimensions d that are edited."""
        return int(self.edited.sum())

    def forward(self, obs: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return edited decisions [..., D] in [-1, 1] and log densities [...] of the edits, in the decision's units.

        A tanh variable scaled by beta has the density of the variable less d ln(beta).

        Args:
            obs: In the networks' units, [..., Do].
            action: Proposed decisions [..., D].
            noise: Standard normals [..., D].
        """
        edit, log_prob = self.net(torch.cat((obs, action), -1), noise)
        made = (action + self.scale * self.edited * edit).clamp(-1, 1)
        return made, (log_prob * self.edited).sum(-1) - self.dims * math.log(self.scale)


def target_entropy(dims: int, scale: float, kind: str) -> float:
    """Return the entropy that the temperature keeps edits near: -d/2 + d ln(beta), or -d/2 as released.

    The entropy of an edit is at most d ln(2 beta).
    """
    return -dims / 2 + (dims * math.log(scale) if kind == "corrected" else 0.0)
