"""The equations: tensors in, tensors out."""

from noiseworks.core.checks import check_number
from torch import Tensor


def blend(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Return `(1 - w) a + w b` (eq. 1).

    Args:
        first: a, of any shape.
        second: b, same shape.
        weight: w, 0 to 1.

    Raises:
        InputError: When the weight is out of range.
    """
    check_number("weight", weight, low=0, high=1)
    return (1 - weight) * first + weight * second


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of each row, `mean (a - b)^2` (eq. 2), shape (B,).

    Args:
        first: a, (B, ...).
        second: b, same shape.
    """
    return (first - second).square().flatten(1).mean(dim=1)
