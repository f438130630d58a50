"""The optimisers of the transformers of the testbeds."""

from collections.abc import Iterable

import torch
from noiseworks.kits.training.muon import Muon
from torch import nn

BETAS, WEIGHT_DECAY = (0.9, 0.98), 0.05


def muon_with_adamw(
    inner: Iterable[nn.Parameter], outer: Iterable[nn.Parameter], learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside a transformer's blocks and AdamW for everything else.

    At these sizes the same loss takes about half of AdamW's steps. Updates are scaled to AdamW's size, so both
    take the same rate. Source: Jordan et al. 2024, Muon; scale: Liu et al. 2025, arXiv 2502.16982.

    Args:
        inner: Matrices of attention and feed-forward layers, 2-D each.
        outer: Embeddings, heads, convolutions, vectors; what has one dimension does not decay.
        learning_rate: Of both.
    """
    outer = list(outer)
    groups = [
        {"params": [p for p in outer if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in outer if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        Muon(inner, learning_rate, WEIGHT_DECAY),
        torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=BETAS, fused=True),
    ]
