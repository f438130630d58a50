"""Guided unmasking: which drafts of the masked model an autoregressive guide accepts."""

from dataclasses import dataclass
from typing import Literal

import torch
from noiseworks.core.checks import check_choice, check_number
from torch import Tensor

Strategy = Literal["deterministic", "dynamic_threshold", "topk", "topk_relative", "aggressive", "stochastic"]
STRATEGIES = ("deterministic", "dynamic_threshold", "topk", "topk_relative", "aggressive", "stochastic")
_TOP = {"topk": 5, "topk_relative": 2, "aggressive": 5}


@dataclass(frozen=True)
class Acceptance:
    """When the guide accepts a draft d, by its distribution q at that position.

    - `deterministic`: d is the guide's likeliest token.
    - `dynamic_threshold`: q(d) > `threshold`.
    - `topk`: d is among the `top_k` likeliest.
    - `topk_relative`: among the `top_k` likeliest, and q(d) >= `rho` max q.
    - `aggressive`: among the `top_k` likeliest, or q(d) > `floor`, or inside the `nucleus`.
    - `stochastic`: with probability q(d).

    Attributes:
        strategy: One of `STRATEGIES`.
        threshold: Of `dynamic_threshold`, in [0, 1); a probability equal to it is rejected.
        top_k: At least 1; None for 5, and 2 with `topk_relative`.
        rho: Of `topk_relative`, in [0, 1].
        floor: Of `aggressive`.
        nucleus: Of `aggressive`, in (0, 1].

    Raises:
        InputError: On an unknown strategy, or a number out of range.
    """

    strategy: Strategy = "deterministic"
    threshold: float = 0.1
    top_k: int | None = None
    rho: float = 0.5
    floor: float = 0.05
    nucleus: float = 0.95

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, STRATEGIES)
        check_number("threshold", self.threshold, low=0, high=1, high_open=True)
        check_number("rho", self.rho, low=0, high=1)
        check_number("floor", self.floor, low=0, high=1)
        check_number("nucleus", self.nucleus, low=0, high=1, low_open=True)
        if self.top_k is not None:
            check_number("top_k", self.top_k, low=1, integer=True)

    def accepts(self, logits: Tensor, drafts: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Return the accept flag a_j of every draft, bool [B, n].

        Args:
            logits: The guide's logits; row j is its distribution of draft j, [B, n, V].
            drafts: Drafted ids, int64 [B, n].
            uniforms: U(0, 1) draws [B, n], for `stochastic`.
        """
        if self.strategy == "deterministic":
            return logits.argmax(dim=-1) == drafts
        q = logits.float().softmax(dim=-1)
        mine = q.gather(-1, drafts.unsqueeze(-1))
        if self.strategy == "dynamic_threshold":
            return (mine > self.threshold).squeeze(-1)
        if self.strategy == "stochastic":
            return uniforms < mine.squeeze(-1)
        # Ties count for the draft: fewer than k tokens are strictly likelier.
        top = (q > mine).sum(dim=-1) < (self.top_k or _TOP[self.strategy])
        mine = mine.squeeze(-1)
        if self.strategy == "topk":
            return top
        if self.strategy == "topk_relative":
            return top & (mine >= self.rho * q.amax(dim=-1))
        # The nucleus holds a token when the likelier ones together stay below its mass.
        likelier = torch.where(q > mine.unsqueeze(-1), q, 0).sum(dim=-1)
        return top | (mine > self.floor) | (likelier < self.nucleus)


def leading_run(flags: Tensor) -> Tensor:
    """Return A, the length of the accepted run at the start of each row: int64 [B].

    Args:
        flags: bool [B, n].
    """
    return flags.long().cumprod(dim=1).sum(dim=1)
