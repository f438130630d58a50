"""The guidance: the gradient of what an expert finds probable, at the noisy sample, as a score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.ppap.experts import Experts
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Strength
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoisyGuide:
    """A guide that reads noisy images: through its experts, or as it is.

    Attributes:
        guide: The guide.
        experts: What stands in for its network, None for the network itself (off the shelf).
    """

    guide: Guide
    experts: Experts | None = None

    def output(self, images: Tensor, t: Tensor | float) -> Tensor:
        """Return the outputs for noisy images.

        Args:
            images: [B, 3, H, W] around [-1, 1].
            t: Original timesteps, [B] or one for all.
        """
        if self.experts is None:
            return self.guide(images)
        return self.experts(self.guide.inputs(images), torch.as_tensor(t))

    def log_likelihood(self, images: Tensor, t: Tensor | float, target: Tensor) -> Tensor:
        """Return log p(target | x_t), or minus the distance of maps, [B].

        Args:
            images: As in `output`.
            t: As in `output`.
            target: A class or a map for each image, or one for all.

        Raises:
            InputError: When the target does not fit the guide, or the batch.
        """
        output = self.output(images, t)
        wanted = _for_rows(target.to(output.device), output, len(images))
        self.guide.task.check(output, wanted)
        return self.guide.task.log_likelihood(output, wanted)

    def to(self, device: torch.device) -> Self:
        """Move the network and its experts."""
        self.guide.model.to(device)
        if self.experts is not None:
            self.experts.to(device).forget()
        return self


def _for_rows(target: Tensor, output: Tensor, rows: int) -> Tensor:
    """Return one target a row: one for all is repeated."""
    alone = 0 if output.ndim == 2 else 2  # dimensions of one class, or of one map
    if target.ndim == alone:
        return target.expand(rows, *target.shape)
    if target.ndim != alone + 1 or len(target) not in (1, rows):
        raise InputError(f"{rows} images need a target each, or one for all, got shape {tuple(target.shape)}")
    return target.expand(rows, *target.shape[1:])


def gradient(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of values [B] with respect to x [B, ...]; rows do not meet, and weights get none."""
    with torch.enable_grad():
        leaf = x.detach().float().requires_grad_()
        (found,) = torch.autograd.grad(value(leaf).sum(), leaf)
    return found


def scaled(found: Tensor, x: Tensor, strength: Strength) -> Tensor:
    """Return s g, or s g |x_t| / |g| with the norms that the strength names; a gradient of 0 stays 0.

    Published is the second form for depth, with |g| of the whole batch and the norm of its first sample ("released"),
    by which a sample depends on its batch.

    Args:
        found: g [B, ...].
        x: x_t, of the same shape.
        strength: s, and the norms.

    Raises:
        NonFiniteError: When the gradient is not finite.
    """
    check_finite("the guide's gradient", found)
    if strength.norm == "none":
        return strength.scale * found
    rows = [1] * (found.ndim - 1)
    if strength.norm == "released":
        length, wanted = found.norm(), x[0].float().norm()
    else:
        length, wanted = (one.float().flatten(1).norm(dim=1).view(-1, *rows) for one in (found, x))
    return (
        torch.where(length > 0, found / length.clamp(min=torch.finfo(found.dtype).tiny), 0)
        * wanted
        * strength.scale
    )
