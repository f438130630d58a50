"""Boundary checks that raise `InputError` with the value, the allowed range and the fix in one sentence."""

import math
from numbers import Integral, Real

from noiseworks.core.errors import InputError, NonFiniteError


def check_number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    high: float | None = None,
    integer: bool = False,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Refuse anything but a finite number in the given range.

    Args:
        name: The argument's name as the caller knows it.
        value: The value to check.
        low: Smallest allowed value, or None for no bound.
        high: Largest allowed value, or None for no bound.
        integer: Whether only whole numbers are allowed.
        low_open: Whether `low` itself is excluded.
        high_open: Whether `high` itself is excluded.

    Raises:
        InputError: When the value is no number, NaN, infinite, not whole or out of range.
    """
    kind = "a whole number" if integer else "a number"
    bounds = ""
    if low is not None:
        bounds += f" {'above' if low_open else 'of at least'} {low:g}"
    if high is not None:
        bounds += f"{' and' if bounds else ''} {'below' if high_open else 'of at most'} {high:g}"
    message = f"{name} must be {kind}{bounds}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(message)
    if integer and value != int(value):
        raise InputError(message)
    if integer and not -(2**63) <= value < 2**63:  # what a tensor's index or size can be
        raise InputError(f"{name} must be a whole number of at most 63 bits, got {value!r}")
    if low is not None and (value < low or (low_open and value == low)):
        raise InputError(message)
    if high is not None and (value > high or (high_open and value == high)):
        raise InputError(message)


def check_seed(name: str, seed: object) -> None:
    """Refuse anything but a whole number from 0 to 2^63 - 1, which every generator takes.

    Raises:
        InputError: Naming the value and the range.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise InputError(f"{name} must be a whole number from 0 to 2^63 - 1, got {seed!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...] | list[str]) -> None:
    """Refuse a value that is not one of `choices`.

    Raises:
        InputError: Naming the value and the choices.
    """
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def check_finite(name: str, tensor, step: int | None = None) -> None:
    """Stop a run whose tensor holds NaN or infinity.

    Args:
        name: What the tensor is ("loss", "latents").
        tensor: A torch tensor of any shape.
        step: The step at which it was computed, for the message.

    Raises:
        NonFiniteError: Naming tensor and step.
    """
    if not bool(tensor.isfinite().all()):
        where = "" if step is None else f" at step {step}"
        raise NonFiniteError(
            f"{name} is not finite{where}: NaN or infinity in a tensor of shape {tuple(tensor.shape)}"
        )
