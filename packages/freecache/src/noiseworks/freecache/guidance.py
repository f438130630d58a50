"""Guided unmasking: which drafts of the masked model an autoregressive guide accepts."""

import torch
from noiseworks.freecache.options import Guidance
from torch import Tensor

_TOP = {"topk": 5, "topk_relative": 2, "aggressive": 5}


def accepts(guidance: Guidance, logits: Tensor, drafts: Tensor, uniforms: Tensor | None = None) -> Tensor:
    """Return the accept flag a_j of every draft, bool [B, n].

    Args:
        guidance: The strategy and its numbers.
        logits: The guide's logits; row j is its distribution q of draft j, [B, n, V].
        drafts: Drafted ids d, int64 [B, n].
        uniforms: U(0, 1) draws [B, n], for `stochastic`.
    """
    strategy = guidance.strategy
    if strategy == "deterministic":
        return logits.argmax(dim=-1) == drafts
    q = logits.float().softmax(dim=-1)
    mine = q.gather(-1, drafts.unsqueeze(-1))
    if strategy == "dynamic_threshold":
        return (mine > guidance.accept_above).squeeze(-1)
    if strategy == "stochastic":
        return uniforms < mine.squeeze(-1)
    # Ties count for the draft: fewer than k tokens are strictly likelier.
    top = (q > mine).sum(dim=-1) < (guidance.accept_top or _TOP[strategy])
    mine = mine.squeeze(-1)
    if strategy == "topk":
        return top
    if strategy == "topk_relative":
        return top & (mine >= guidance.accept_ratio * q.amax(dim=-1))
    # The nucleus holds a token when the likelier ones together stay below its mass.
    likelier = torch.where(q > mine.unsqueeze(-1), q, 0).sum(dim=-1)
    return top | (mine > guidance.accept_floor) | (likelier < guidance.accept_nucleus)


def leading_run(flags: Tensor) -> Tensor:
    """Return A, the length of the accepted run at the start of each row: int64 [B].

    Args:
        flags: bool [B, n].
    """
    return flags.long().cumprod(dim=1).sum(dim=1)
