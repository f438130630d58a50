"""Affine experts that whole samples are sent to, by one grouped matrix product.

`torch.nn.functional.grouped_mm` takes int32 ends, no bias, rows whose strides are multiples of 16 bytes, and gradients
that are contiguous; what it leaves behind the last group is uninitialised memory. All of that is kept here.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.experts import group_by_expert
from torch import Tensor, nn

Dispatch = Literal["auto", "grouped", "loop"]
DISPATCHES = ("auto", "grouped", "loop")
# Up to this many experts the loop is as fast on a CPU as the grouped product.
_CPU_LOOP_EXPERTS = 8


def grouped_linear(rows: Tensor, weight: Tensor, ends: Tensor, dispatch: Dispatch = "auto") -> Tensor:
    """Return `rows[i] @ weight[e]` with e the group of row i.

    Args:
        rows: (M, K), sorted by group.
        weight: (E, K, N).
        ends: (E,), cumulative ends of the groups, of any whole type; empty groups are allowed.
        dispatch: grouped (one product, padded to the strides that it needs), loop (one product a group, any dtype) or
            auto: grouped for bfloat16 on CUDA and for more than 8 groups on a CPU, else the loop.

    Raises:
        InputError: When the groups do not end at the last row, or "grouped" cannot take the dtype.
    """
    check_choice("dispatch", dispatch, DISPATCHES)
    takes = rows.dtype == torch.bfloat16 if rows.is_cuda else rows.dtype in _GROUPED
    takes = takes and hasattr(F, "grouped_mm") and len(rows) > 0
    if dispatch == "grouped" and not takes:
        raise InputError(
            f"grouped_mm does not take {rows.dtype} on {rows.device.type} here: use dispatch loop"
        )
    if dispatch == "auto":
        dispatch = "grouped" if takes and (rows.is_cuda or len(weight) > _CPU_LOOP_EXPERTS) else "loop"
    if dispatch == "loop":
        sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
        if sum(sizes) != len(rows):
            raise InputError(f"groups end at row {sum(sizes)} of {len(rows)}")
        parts = zip(rows.split(sizes), weight, strict=True)
        return torch.cat([part @ matrix for part, matrix in parts])
    if not rows.is_cuda and int(ends[-1]) != len(rows):  # on a GPU the check would wait for the device
        raise InputError(f"groups end at row {int(ends[-1])} of {len(rows)}")
    multiple = 16 // rows.element_size()
    inner, outer = (-size % multiple for size in weight.shape[1:])
    product = F.grouped_mm(
        F.pad(rows, (0, inner)), F.pad(weight, (0, outer, 0, inner)), offs=ends.to(torch.int32)
    )
    # Without the copy an expanded gradient would reach grouped_mm, which refuses it.
    return _Contiguous.apply(product)[:, : weight.shape[2]]


_GROUPED = (torch.float32, torch.bfloat16, torch.float16)


class _Contiguous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class AffineExperts(nn.Module):
    """E maps `z W_j + c_j`, all zero at first, of which each sample takes k, weighted.

    Args:
        experts: E.
        width: D.
        dispatch: See `grouped_linear`.
    """

    def __init__(self, experts: int, width: int, dispatch: Dispatch = "auto") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, width, width))
        self.bias = nn.Parameter(torch.zeros(experts, width))
        self.dispatch = dispatch

    def forward(self, z: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """Return `Σ_j g_j (z W_j + c_j)`, (B, N, D).

        Args:
            z: Tokens (B, N, D).
            chosen: Experts of each sample, int64 (B, k).
            gates: Their weights (B, k).
        """
        samples, tokens, width = z.shape
        k = chosen.shape[1]
        order, ends = group_by_expert(chosen.reshape(-1), len(self.weight))
        rows = z[order // k].reshape(-1, width)
        out = grouped_linear(rows, self.weight.to(z.dtype), ends * tokens, self.dispatch)
        out = out.reshape(-1, tokens, width)[order.argsort()].reshape(samples, k, tokens, width)
        weights = gates.to(z.dtype)
        return (out * weights[:, :, None, None]).sum(1) + self._offset(chosen, weights)[:, None]

    def _offset(self, chosen: Tensor, weights: Tensor) -> Tensor:
        spread = weights.new_zeros(len(chosen), len(self.bias)).scatter(1, chosen, weights)
        return spread @ self.bias.to(weights.dtype)

    def fold(self, chosen: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return `Σ_j g_j W_j` (D, D) and `Σ_j g_j c_j` (D,), for one choice (k,) that all samples share."""
        gates = gates.to(self.weight.dtype)
        # Experts that are not chosen count 0: to read them is faster than to copy those that are.
        spread = gates.new_zeros(len(self.bias)).scatter(0, chosen, gates)
        return (spread @ self.weight.flatten(1)).view_as(self.weight[0]), spread @ self.bias
