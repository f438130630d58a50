"""What a guide is about: how an expert learns from it, and how probable it finds what is wanted."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from noiseworks.core.errors import InputError
from torch import Tensor


class Task(Protocol):
    """A kind of guide."""

    def distil(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the loss of the student's outputs for noisy images beside the teacher's for clean ones, a scalar."""

    def log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how well outputs fit what is wanted, [B]."""

    def check(self, output: Tensor, target: Tensor) -> None:
        """Refuse a target that does not fit the outputs."""


@dataclass(frozen=True)
class Classification:
    """Logits [B, K]; a target is a class [B].

    Attributes:
        temperature: Of the teacher's probabilities; below 1 they are sharpened.
    """

    temperature: float = 0.25

    def distil(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the mean over images and classes of KL(softmax(z_T / temperature) || softmax(z_S))."""
        wanted = (teacher.float() / self.temperature).log_softmax(1)
        return F.kl_div(student.float().log_softmax(1), wanted, reduction="none", log_target=True).mean()

    def supervised(self, labels: Tensor, student: Tensor) -> Tensor:
        """Return the cross-entropy of labels [B], of noise-aware training with them."""
        return F.cross_entropy(student.float(), labels)

    def log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Return log p(target | image)."""
        return output.float().log_softmax(1).gather(1, target[:, None])[:, 0]

    def check(self, output: Tensor, target: Tensor) -> None:
        """Refuse classes that the guide does not have.

        Raises:
            InputError: Naming the number of classes.
        """
        if output.ndim != 2:
            raise InputError(f"a classifier returns logits [B, K], got {tuple(output.shape)}")
        if int(target.min()) < 0 or int(target.max()) >= output.shape[1]:
            raise InputError(
                f"the guide knows classes 0 to {output.shape[1] - 1}, got {target.unique().tolist()}"
            )


@dataclass(frozen=True)
class Segmentation:
    """Logits [B, K, h, w]; a target is the class of each pixel [B, h, w]."""

    def distil(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the mean over pixels of KL(teacher || student)."""
        wanted = teacher.float().log_softmax(1)
        return (
            F.kl_div(student.float().log_softmax(1), wanted, reduction="none", log_target=True).sum(1).mean()
        )

    def log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over pixels of log p(target | image)."""
        return -F.cross_entropy(output.float(), target, reduction="none").mean((1, 2))

    def check(self, output: Tensor, target: Tensor) -> None:
        """Refuse maps of another size and unknown classes.

        Raises:
            InputError: Naming what the guide has.
        """
        _check_map(output[:, 0] if output.ndim == 4 else output, target)
        if int(target.min()) < 0 or int(target.max()) >= output.shape[1]:
            raise InputError(f"the guide knows classes 0 to {output.shape[1] - 1}, the map has others")


@dataclass(frozen=True)
class Depth:
    """Maps [B, h, w]; a target is a map."""

    def distil(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the mean squared error of the maps."""
        return F.mse_loss(student.float(), teacher.float())

    def log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Return minus the mean squared error."""
        return -(output.float() - target.float()).square().mean((1, 2))

    def check(self, output: Tensor, target: Tensor) -> None:
        """Refuse maps of another size.

        Raises:
            InputError: Naming both sizes.
        """
        _check_map(output, target)


def _check_map(output: Tensor, target: Tensor) -> None:
    if output.ndim != 3 or output.shape[-2:] != target.shape[-2:]:
        have, got = tuple(output.shape[-2:]), tuple(target.shape[-2:])
        raise InputError(f"the guide's maps are {have[0]}x{have[1]}, the target is {got[0]}x{got[1]}")
