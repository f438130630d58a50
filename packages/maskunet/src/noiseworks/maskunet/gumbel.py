"""The Gumbel sigmoid (section 3.2): binary masks with a gradient, from a single Gumbel variable a weight.

With one Gumbel variable, not the difference of two, a mask is 1 with probability 1 - exp(-e^l) at threshold 0.5, and
not with the logistic sigmoid's: at a logit of 1 in 93.4 % of the draws instead of 73.1 %.
"""

import math

import torch
from torch import Tensor


def cut(tau: float, threshold: float) -> float:
    """Return the value of l + g above which sigmoid((l + g) / tau) exceeds the threshold: tau logit(threshold)."""
    return tau * math.log(threshold / (1 - threshold))


def keep_probability(logits: Tensor, tau: float = 1.0, threshold: float = 0.5) -> Tensor:
    """Return the probability that a mask is 1: 1 - exp(-exp(l - tau logit(threshold)))."""
    return -torch.expm1(-torch.exp(logits - cut(tau, threshold)))


def gumbel_sigmoid(
    logits: Tensor,
    noise: Tensor | None = None,
    *,
    tau: float = 1.0,
    threshold: float = 0.5,
    hard: bool = True,
) -> Tensor:
    """Return masks of logits, of their shape in float32.

    y = sigmoid((l + g) / tau) with g = -ln E, and with `hard` 1[y > threshold], whose gradient is that of y.

    Args:
        logits: l, any shape.
        noise: E, exponentially distributed, of that shape; None for g = 0 (deterministic: l > 0 at threshold 0.5).
        tau: Temperature, above 0.
        threshold: In (0, 1).
        hard: Whether masks are 0 or 1.
    """
    moved = logits.float() if noise is None else logits.float() - noise.log()
    soft = torch.sigmoid(moved / tau)
    if not hard:
        return soft
    bits = (moved > cut(tau, threshold)).to(soft)
    # In low precision hard - y + y is not exactly 0 or 1; so the gradient is attached and the value is not touched.
    return bits if not soft.requires_grad else _StraightThrough.apply(bits, soft)


class _StraightThrough(torch.autograd.Function):
    """The value of the first argument, the gradient of the second."""

    @staticmethod
    def forward(ctx, bits: Tensor, soft: Tensor) -> Tensor:
        """Return the bits."""
        return bits.view_as(bits)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        """Pass the gradient to the soft mask."""
        return None, gradient
