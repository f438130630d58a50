"""Blending conditions: dicts of the denoiser's arguments with one row a sample, nested or not."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.errors import InputError
from torch import Tensor

Condition = Mapping[str, Any]


def mix(parts: Sequence[Condition], weights: Tensor) -> dict[str, Any]:
    """Return the blend of conditions; a sample with a one-hot weight gets that condition's rows, bit for bit.

    Masks of tokens are joined: a token counts where it counts for any concept with weight.

    Args:
        parts: M conditions with the same names and shapes, B rows each.
        weights: [B, M], rows summing to 1.

    Raises:
        InputError: When class labels would have to be averaged.
    """
    return {
        name: mix([part[name] for part in parts], weights)
        if isinstance(value, Mapping)
        else _mixed(name, [part[name] for part in parts], weights)
        for name, value in parts[0].items()
    }


def take_condition(values: Mapping[str, Any], like: Condition, rows: Tensor) -> dict[str, Any]:
    """Return the condition that is in a call's arguments.

    Args:
        values: The denoiser's keyword arguments.
        like: A condition whose names are taken.
        rows: Rows of the samples.
    """
    return {
        name: take_condition(values[name], value, rows)
        if isinstance(value, Mapping)
        else values[name][rows.to(values[name].device)]
        for name, value in like.items()
    }


def _mixed(name: str, tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    first = tensors[0]
    stacked = torch.stack([tensor.to(first) for tensor in tensors], 1)  # [B, M, ...]
    weights = weights.to(first.device)
    chosen = stacked[torch.arange(len(first), device=first.device), weights.argmax(1)]
    hard = weights.amax(1) == 1
    if bool(hard.all()):
        return chosen
    shape = (-1, stacked.shape[1], *[1] * (first.ndim - 1))
    if "mask" in name:
        blended = torch.where((weights > 0).view(shape), stacked, torch.zeros_like(stacked)).amax(1)
    elif first.is_floating_point():
        blended = (stacked.double() * weights.view(shape)).sum(1).to(first.dtype)
    else:
        raise InputError(f"{name} cannot be averaged: use a policy that chooses one concept a step")
    return torch.where(hard.view(-1, *[1] * (first.ndim - 1)), chosen, blended)
