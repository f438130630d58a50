"""Quality and diversity of samples, always reported together: perplexity alone rewards a low temperature."""

from collections.abc import Callable

import torch
from noiseworks.core.errors import InputError
from torch import Tensor


def unigram_entropy(tokens: Tensor) -> Tensor:
    """Return the entropy in nats of the token frequencies of each sample, float64 [B]."""
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise InputError(f"need samples [B, L], got shape {tuple(tokens.shape)}")
    ranked = tokens.sort(dim=1).values
    # Each token contributes log(count of its value): H = log L - mean log count.
    new = torch.ones_like(ranked, dtype=torch.bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    group = new.cumsum(dim=1) - 1
    counts = torch.zeros(ranked.shape, dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(1, group, torch.ones_like(counts))
    mean_log = counts.gather(1, group).log().mean(dim=1)
    return torch.tensor(float(tokens.shape[1]), dtype=torch.float64).log() - mean_log


def distinct_tokens(tokens: Tensor) -> Tensor:
    """Return how many different tokens each sample holds, int64 [B]."""
    ranked = tokens.sort(dim=1).values
    return 1 + (ranked[:, 1:] != ranked[:, :-1]).sum(dim=1)


@torch.no_grad()
def generative_nll(scorer: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Return the mean negative log-likelihood in nats a token under an autoregressive scorer, float64 [B].

    Args:
        scorer: tokens [B, L] -> logits [B, L, V], row i predicting token i + 1 (a causal language model).
        tokens: Samples, int64 [B, L], L at least 2; the first token is not scored.

    Returns:
        Its exponential is the generative perplexity of a sample.
    """
    logits = scorer(tokens)[:, :-1]
    wanted = tokens[:, 1:].unsqueeze(-1)
    return -logits.double().log_softmax(dim=-1).gather(-1, wanted).squeeze(-1).mean(dim=1)
