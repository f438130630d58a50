"""The time-free objective: a masked-language-model loss averaged over the number of masks (section 3)."""

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.kits.masked_lm import check_logits
from torch import Tensor


def mask_exactly(
    tokens: Tensor, counts: Tensor, mask_id: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return tokens with exactly `counts` of each row masked, uniformly at random, and where.

    Args:
        tokens: int64 [B, L].
        counts: n, int64 [B], in 0 … L.
        mask_id: Id of [MASK].
        generator: Source of randomness.
    """
    device = tokens.device if generator is None else generator.device
    order = torch.rand(tokens.shape, generator=generator, device=device).argsort(dim=1).argsort(dim=1)
    masked = order.to(tokens.device) < counts[:, None]
    return tokens.masked_fill(masked, mask_id), masked


def _check_clean(tokens: Tensor, mask_id: int) -> None:
    if tokens.ndim != 2 or bool((tokens == mask_id).any()):
        raise InputError(f"need clean tokens [B, L] without the mask id {mask_id}, got {tuple(tokens.shape)}")


def _cross_entropy(denoiser: Denoiser, noisy: Tensor, tokens: Tensor, call: int | None = None) -> Tensor:
    everywhere = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    logits = denoiser(noisy, None, everywhere)
    if call is not None:
        check_logits(logits, call)
    flat = logits.reshape(-1, logits.shape[-1])
    wide = flat if flat.dtype == torch.float64 else flat.float()
    return F.cross_entropy(wide, tokens.reshape(-1), reduction="none").reshape(tokens.shape)


def time_free_loss(
    denoiser: Denoiser, tokens: Tensor, mask_id: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return an unbiased estimate of each row's negative evidence bound in nats, [B]; differentiable.

    n ~ Uniform{1 … L} masks, times L / n, of the summed cross-entropy at the masks: the integral over time of
    the weights t^-1 C(L, n) t^n (1 - t)^(L - n) is 1/n, whatever the schedule.

    Args:
        denoiser: See `denoisers`; called without times.
        tokens: Clean tokens, int64 [B, L].
        mask_id: Id of [MASK].
        generator: Source of randomness.

    Raises:
        InputError: When the tokens hold the mask id.
    """
    _check_clean(tokens, mask_id)
    rows, length = tokens.shape
    device = tokens.device if generator is None else generator.device
    counts = torch.randint(1, length + 1, (rows,), generator=generator, device=device).to(tokens.device)
    noisy, masked = mask_exactly(tokens, counts, mask_id, generator)
    return (_cross_entropy(denoiser, noisy, tokens) * masked).sum(dim=1) * length / counts


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    tokens: Tensor,
    mask_id: int,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the negative evidence bound in nats of each row, float64 [B]: Σ_n (1/n) E[Σ_masked CE].

    Every number of masks 1 … L is visited `draws` times, which has a smaller variance than drawing n.

    Args:
        denoiser: See `denoisers`.
        tokens: Clean tokens, int64 [B, L].
        mask_id: Id of [MASK].
        draws: Random masks of each number.
        generator: Source of randomness.

    Raises:
        InputError: When the tokens hold the mask id, or `draws` is below 1.
        NonFiniteError: When the model gives NaN or infinity, naming the network call.
    """
    check_number("draws", draws, low=1, integer=True)
    _check_clean(tokens, mask_id)
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for count in range(1, tokens.shape[1] + 1):
        for draw in range(draws):
            counts = torch.full((len(tokens),), count, device=tokens.device)
            noisy, masked = mask_exactly(tokens, counts, mask_id, generator)
            nats = _cross_entropy(denoiser, noisy, tokens, (count - 1) * draws + draw)
            total += (nats * masked).sum(dim=1).double() / (count * draws)
    return total
