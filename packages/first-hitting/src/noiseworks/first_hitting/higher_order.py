"""Two forms that reduce the error of revealing several tokens from one output, at equal calls."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Memory:
    """The last output at every masked position.

    Attributes:
        log_probs: [B, L, V]; only the positions that were masked are set.
        masks: Masks that there were, [B].
        known: Rows that have been called, bool [B].
    """

    log_probs: Tensor
    masks: Tensor
    known: Tensor

    @staticmethod
    def of(
        rows: Tensor, positions: Tensor, valid: Tensor, logits: Tensor, masks: Tensor, shape: torch.Size
    ) -> "Memory":
        """Return the memory of a call on `rows` with `logits` [R, n, V] at `positions` [R, n]."""
        log_probs = logits.new_zeros(*shape, logits.shape[-1])
        where = rows[:, None].expand_as(positions)[valid]
        log_probs[where, positions[valid]] = logits.log_softmax(dim=-1)[valid]
        before, known = masks.new_zeros(shape[0]), torch.zeros(shape[0], dtype=torch.bool, device=rows.device)
        before[rows], known[rows] = masks, True
        return Memory(log_probs, before, known)


def extrapolate(
    logits: Tensor, positions: Tensor, rows: Tensor, masks: Tensor, memory: Memory | None
) -> Tensor:
    """Return log-probabilities for the reveals of a step, carried on from the last two outputs.

    For the reveal at which n of the n_c masks are left,
    log μ(n) = log μ_c + (n_c - n) / (n_p - n_c) (log μ_c - log μ_p), the factor cut to [0, 1], normalised.

    Args:
        logits: Present output, [R, n, V], in the order of the reveals.
        positions: Their positions, int64 [R, n].
        rows: Rows of the batch, int64 [R].
        masks: n_c, [R].
        memory: The output before; None or unknown rows stay of first order.
    """
    current = logits.log_softmax(dim=-1)
    if memory is None:
        return current
    index = positions.unsqueeze(-1).expand_as(current)
    before = memory.log_probs[rows].gather(1, index)
    revealed = torch.arange(positions.shape[1], device=rows.device)
    gap = (memory.masks[rows] - masks).clamp(min=1)
    factor = (revealed / gap[:, None]).clamp(0, 1)
    factor = factor.masked_fill(~memory.known[rows][:, None], 0)
    # -inf minus -inf is NaN; what is forbidden stays forbidden.
    slope = torch.where(current.isinf() | before.isinf(), 0, current - before)
    return (current + factor.unsqueeze(-1).to(current.dtype) * slope).log_softmax(dim=-1)


def correct(chosen: Tensor, reveal: Tensor) -> Tensor:
    """Return which reveals the corrector masks again: the last half, floor(k / 2), of each row's k.

    Reveals stand in random order, so the last half is a uniformly random half.

    Args:
        chosen: Reveals, bool [R, n].
        reveal: k, [R].
    """
    place = torch.arange(chosen.shape[1], device=chosen.device)
    return chosen & (place >= (reveal - reveal // 2)[:, None])
