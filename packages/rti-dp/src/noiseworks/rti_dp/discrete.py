"""Discrete action dimensions such as grippers: scaled in the data, or snapped in the warm start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.rti_dp.options import parse_discrete
from torch import Tensor

DiscreteMode = Literal["none", "clip", "scale"]


@dataclass(frozen=True)
class DiscreteSpec:
    """Which dimensions of an action are +-1, and how a warm start treats them.

    A guess at +1 leaves a small level of noise with no way to -1. Values divided by `factor` have one.

    Attributes:
        dims: Discrete dimensions.
        mode: `none`; `clip` for a policy trained on +-1: after each replan the guess is +-1/factor there; `scale`
            for a policy trained on +-1/factor (see `scale_dataset`): the guess stays as it is. In both the
            actions handed out are +1 where the prediction is above 0, else -1.
        factor: What +-1 is divided by.
    """

    dims: tuple[int, ...] = ()
    mode: DiscreteMode = "none"
    factor: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        check_choice("mode", self.mode, ("none", "clip", "scale"))
        check_number("factor", self.factor, low=0, low_open=True)
        if self.mode != "none" and not self.dims:
            raise InputError(f"discrete mode {self.mode!r} needs at least one dimension")

    @classmethod
    def of(cls, given: "DiscreteSpec | str | None") -> "DiscreteSpec":
        """Return the spec itself, of the words of `parse`, or the one without dimensions for None.

        Raises:
            InputError: When it is something else or the words have another form.
        """
        if given is None or isinstance(given, DiscreteSpec):
            return given or cls()
        if isinstance(given, str):
            return cls.parse(given)
        raise InputError(f"discrete must be a DiscreteSpec or words such as 2:clip:10, got {given!r}")

    @classmethod
    def parse(cls, text: str) -> "DiscreteSpec":
        """Return the spec of `none`, or of `DIMS:MODE[:FACTOR]` such as `2:clip:10` or `9,19:scale`.

        Raises:
            InputError: When the text has another form.
        """
        return cls(*parse_discrete(text))

    def check(self, action_dim: int, normalizer: object) -> None:
        """Refuse dimensions that an action does not have, and `scale` under a normaliser that would undo it.

        Raises:
            InputError: Naming the dimension.
        """
        wrong = [d for d in self.dims if not 0 <= d < action_dim]
        if wrong:
            raise InputError(f"discrete dims must lie in 0 to {action_dim - 1}, got {wrong[0]}")
        if self.mode == "scale" and not is_identity(normalizer, self.dims, action_dim):
            raise InputError(
                f"discrete mode 'scale' needs a normaliser that is the identity on dims {list(self.dims)}: another "
                "one undoes the scaling; train with identity_dims, or use mode 'clip'"
            )

    def snap_guess_(self, guess: Tensor) -> Tensor:
        """Set the guess [B, T, Da] to +-1/factor on the discrete dimensions; zero counts as negative."""
        if self.mode == "clip":
            for d in self.dims:
                entry = guess[..., d]
                entry.copy_(torch.where(entry > 0, 1.0 / self.factor, -1.0 / self.factor))
        return guess

    def decide_(self, prediction: Tensor) -> Tensor:
        """Set a prediction [B, T, Da] to +1 or -1 on the discrete dimensions; zero counts as negative."""
        if self.mode != "none":
            for d in self.dims:
                entry = prediction[..., d]
                entry.copy_(torch.where(entry > 0, 1.0, -1.0))
        return prediction


def is_identity(normalizer: object, dims: Sequence[int], action_dim: int) -> bool:
    """Return whether a normaliser, of whatever class, passes the given dimensions through unchanged."""
    probe = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0])[:, None].repeat(1, action_dim)
    found = normalizer.normalize(probe)
    return bool(torch.equal(found.cpu()[:, list(dims)], probe[:, list(dims)]))
