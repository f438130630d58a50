"""Datasets with a scaled gripper: discrete actions +-1 divided by a factor before a policy is trained."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from noiseworks.core.arrays import read_arrays
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.chunking import Episodes


def scale_dataset(dataset: Episodes, dims: Sequence[int], factor: float = 10.0) -> Episodes:
    """Return episodes whose discrete actions are divided by a factor.

    The policy's normaliser must be the identity there (`LinearNormalizer.fit(..., identity_dims=dims)`): one that
    fits the range would undo the scaling.

    Args:
        dataset: Episodes with actions +-1 on the dimensions.
        dims: Discrete dimensions.
        factor: Above 0; the paper's is 10.

    Raises:
        InputError: When a dimension is out of range or holds other values than +-1, or the factor is not above 0.
    """
    return replace(dataset, actions=scale_actions(dataset.actions, dims, factor))


def scale_actions(actions: np.ndarray, dims: Sequence[int], factor: float) -> np.ndarray:
    """Return actions [M, Da] divided by a factor on some dimensions.

    Raises:
        InputError: As `scale_dataset`.
    """
    check_number("factor", factor, low=0, low_open=True)
    if actions.ndim != 2:
        raise InputError(f"actions must have shape [M, Da], got {actions.shape}")
    if not dims:
        raise InputError("name at least one discrete dimension")
    scaled = actions.copy()
    for d in dims:
        if not 0 <= d < actions.shape[1]:
            raise InputError(f"dims must lie in 0 to {actions.shape[1] - 1}, got {d}")
        found = np.unique(actions[:, d])
        if not np.isin(found, (-1.0, 1.0)).all():
            shown = ", ".join(f"{value:g}" for value in found[:3])
            raise InputError(
                f"dimension {d} holds {len(found)} values ({shown}{', ...' if len(found) > 3 else ''}) and not "
                "only -1 and 1: it is not discrete, or scaled already"
            )
        scaled[:, d] /= factor
    return scaled


def from_end(dims: Sequence[int], width: int) -> list[int]:
    """Return dimensions with -1, -2 and so on counted from the last of `width`."""
    return [d + width if -width <= d < 0 else d for d in dims]


def scale_npz(source: Path, target: Path, dims: Sequence[int], factor: float) -> tuple[int, list[int]]:
    """Write a copy of an npz file whose array `actions` is divided by a factor on some dimensions.

    Args:
        source: The file.
        target: The copy.
        dims: Discrete dimensions; negative ones count from the last.
        factor: Above 0.

    Returns:
        The number of steps, and the dimensions.

    Raises:
        InputError: When the file holds no actions or a value is wrong.
    """
    arrays = read_arrays(source)
    if "actions" not in arrays:
        raise InputError(f"{source} lacks the array actions; it has {', '.join(arrays) or 'none'}")
    found = from_end(dims, arrays["actions"].shape[-1])
    arrays["actions"] = scale_actions(arrays["actions"], found, factor)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(target, buffer.getvalue())
    return len(arrays["actions"]), found
