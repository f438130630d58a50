"""Selecting batch rows in a denoiser's arguments; reading and replacing the prediction in its output."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def take_rows(value: Any, rows: Tensor, total: int, shared: Sequence[str] = ()) -> Any:
    """Return `value` with the given rows of every tensor whose first axis has `total` entries.

    Dicts, lists and tuples are searched to any depth (ControlNet residuals, added conditions); whatever
    else comes along is returned as it is.

    Args:
        value: A tensor or a nest of tensors.
        rows: Row indices, int64 `[n]`.
        total: The number of rows of a tensor that carries the batch.
        shared: Names of dict entries that carry no batch although their first axis may have the same length.
    """
    if isinstance(value, Tensor):
        if value.ndim > 0 and value.shape[0] == total:
            return value.index_select(0, rows.to(value.device))
        return value
    if isinstance(value, Mapping):
        return {k: v if k in shared else take_rows(v, rows, total, shared) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(item, rows, total, shared) for item in value)
    return value


def prediction_of(output: Any) -> Tensor:
    """Return a denoiser's prediction: the first entry of the tuple or output object that it returned."""
    return output if isinstance(output, Tensor) else output[0]


def replace_prediction(output: Any, prediction: Tensor) -> Any:
    """Return an output of the same kind as `output` that holds `prediction`.

    Args:
        output: A tensor, a tuple or a diffusers output object such as `Transformer2DModelOutput`.
        prediction: The new prediction, `[rows, ...]`.
    """
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, next(iter(output)): prediction})


def scatter_rows(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """Return `[total, ...]` with `values` in the given rows and zeros elsewhere.

    Args:
        values: `[n, ...]`.
        rows: Row indices, int64 `[n]`, without repetition.
        total: Number of rows of the result.
    """
    full = torch.zeros((total, *values.shape[1:]), dtype=values.dtype, device=values.device)
    return full.index_copy(0, rows.to(values.device), values)
