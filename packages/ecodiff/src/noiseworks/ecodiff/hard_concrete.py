"""Masks from logits: the hard concrete relaxation (section 3.2), its closed forms, and the sparsity penalties.

A logit λ is the log-odds of a unit. With logistic noise it becomes a mask value in [0, 1] that is 0 and 1 with
positive probability and has a gradient in between (Louizos, Welling and Kingma 2018).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from noiseworks.core.checks import check_choice, check_number
from torch import Tensor

TEMPERATURE, LOW, HIGH = 0.83, -0.1, 1.1  # β_c, γ, ζ
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)  # β_c log(-γ/ζ) = -1.990253
KINDS = ("hard_concrete", "sigmoid", "binary", "threshold", "none")

Kind = Literal["hard_concrete", "sigmoid", "binary", "threshold", "none"]
Penalty = Literal["l0", "l1", "l2"]


def hard_concrete(logits: Tensor, uniform: Tensor, eps: float) -> Tensor:
    """Return m = clamp(s (ζ - γ) + γ, 0, 1) with s = sigmoid((log(u + ε) - log(1 - u + ε) + λ) / β_c).

    Args:
        logits: λ, `[n]`.
        uniform: u in [0, 1), same shape.
        eps: ε > 0. It bounds the noise to ± log((1 + ε) / ε): 1.0986 at 0.5, 2.398 at 0.1.

    Raises:
        InputError: When ε is below 1e-8, where the logarithm of u = 0 would be infinite.
    """
    check_number("eps", eps, low=1e-8)
    noise = (uniform + eps).log() - (1 - uniform + eps).log()
    stretched = torch.sigmoid((noise + logits) / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def mask_of(logits: Tensor, kind: Kind, eps: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Return masks of logits, like them; only "hard_concrete" draws random numbers.

    Args:
        logits: λ, `[n]`.
        kind: "hard_concrete"; "sigmoid", σ(λ); "threshold", 1 where λ > 0; "binary", λ itself; "none", ones.
        eps: ε of hard concrete.
        generator: Of the draws, on the CPU.

    Raises:
        InputError: When the kind is unknown.
    """
    check_choice("kind", kind, KINDS)
    match kind:
        case "hard_concrete":
            uniform = torch.rand(logits.shape, generator=generator).to(logits)
            return hard_concrete(logits, uniform, eps)
        case "sigmoid":
            return logits.sigmoid()
        case "threshold":
            return (logits > 0).to(logits)
        case "binary":
            return logits
    return torch.ones_like(logits)


def prob_kept(logits: Tensor) -> Tensor:
    """Return P(m ≠ 0) = σ(λ + 1.990253) for unbounded noise (ε → 0)."""
    return torch.sigmoid(logits - SHIFT)


def prob_whole(logits: Tensor) -> Tensor:
    """Return P(m = 1) = σ(λ - 1.990253) for unbounded noise (ε → 0)."""
    return torch.sigmoid(logits + SHIFT)


def penalty(layers: Sequence[Tensor], kind: Penalty, bounded: bool = False, mean: bool = True) -> Tensor:
    """Return the penalty R of one family of units, a scalar (section 3.3 and the released configurations).

    "l1" and "l2" are 1/L Σ_l |r(λ_l)| / n_l with that norm, on the raw logit r(λ) = λ, which pushes λ to 0 and no
    further, or with `bounded` on r(λ) = σ(0.4 λ + 1), which goes on pushing below 0. "l0" is the expected number of
    kept units, 1/L Σ_l Σ_i P(m ≠ 0), which is what the paper's text describes; the released runs use "l1".

    Args:
        layers: Logits of each layer, `[n_l]`.
        kind: "l0", "l1" or "l2".
        bounded: Whether r is the bounded transform.
        mean: Whether a layer's norm is divided by its n_l; "l0" is a sum in any case.
    """
    check_choice("penalty", kind, ("l0", "l1", "l2"))
    if kind == "l0":
        return torch.stack([prob_kept(layer).sum() for layer in layers]).mean()
    order = int(kind[1])
    norms = []
    for layer in layers:
        value = torch.sigmoid(0.4 * layer + 1) if bounded else layer
        norms.append(torch.linalg.vector_norm(value, order) / (len(layer) if mean else 1))
    return torch.stack(norms).mean()
