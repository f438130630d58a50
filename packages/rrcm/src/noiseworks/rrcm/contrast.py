"""The losses: telling images apart by their representation, and agreeing over draws of noise."""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed


def info_nce(features: Tensor, targets: Tensor, temperature: float = 0.2) -> Tensor:
    """Return L_i = logsumexp_j(F_i F'_j / τ) - F_i F'_i / τ, (n,), of features of unit length, in float32 at least.

    Args:
        features: F (n, d); gradients flow through them alone.
        targets: F' (m, d), whose first n rows are the images of the features; the others are negatives.
        temperature: τ.
    """
    kind = torch.promote_types(features.dtype, torch.float32)
    found, wanted = (F.normalize(rows.to(kind), dim=1) for rows in (features, targets.detach()))
    similar = found @ wanted.T / temperature
    return similar.logsumexp(1) - similar.diagonal()


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes without gradients, this process's first; without several, the rows."""
    rows = rows.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    own = distributed.get_rank()
    return torch.cat([rows, *parts[:own], *parts[own + 1 :]])


def consistency_regulariser(
    logits: Tensor, agreement: float, confidence: float, form: str = "default"
) -> Tensor:
    """Return λ (1/m) Σ_j D(p̄, p_j) + η H(p̄) of each image, (n,) (Jeong and Shin 2020).

    Args:
        logits: Of m draws (m, n, K); p_j are their softmaxes, p̄ the mean of these.
        agreement: λ.
        confidence: η.
        form: D: default, the divergence KL(p̄ ‖ p_j); xent, the cross-entropy of p_j under p̄; mse, the squared
            distance.
    """
    logs = logits.log_softmax(-1)
    mean = logs.exp().mean(0)
    sure = mean.clamp(min=1e-20).log()
    entropy = -(mean * sure).sum(-1)
    match form:
        case "xent":
            apart = -(mean * logs).sum(-1).mean(0)
        case "mse":
            apart = (logs.exp() - mean).square().sum(-1).mean(0)
        case _:
            apart = (mean * (sure - logs)).sum(-1).mean(0)
    return agreement * apart + confidence * entropy
