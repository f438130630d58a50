"""What a sampler calls: `denoiser(tokens, times, positions) -> logits` at the positions asked for."""

from collections.abc import Callable

import torch
from noiseworks.core.discrete import MaskSchedule
from noiseworks.core.errors import InputError
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def from_callable(function: Callable[[Tensor, Tensor | None], Tensor], mask_id: int) -> Denoiser:
    """Return a denoiser of a function `(tokens, times) -> logits [B, L, V]`; [MASK] is never predicted.

    Args:
        function: The model; `times` are float64 [B], or None for a sampler without a clock.
        mask_id: Id of [MASK]; its logit becomes -inf.
    """

    def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        logits = function(tokens, times)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise InputError(f"the model must give logits [B, L, V], got shape {tuple(logits.shape)}")
        if mask_id < 0:
            raise InputError(f"mask_id must be at least 0, got {mask_id}")
        index = positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        taken = logits.gather(1, index)
        if mask_id < logits.shape[-1]:
            taken[..., mask_id] = -torch.inf
        return taken

    return denoise


def from_sigma_model(
    model: Callable[[Tensor, Tensor], Tensor], schedule: MaskSchedule, mask_id: int
) -> Denoiser:
    """Return a denoiser of a model `f(tokens, sigma)` that is conditioned on the total noise σ = -log(1 - m).

    Source: MDLM and SEDD condition on σ(t). Without a clock σ is 0, as MDLM does for time-free models.

    Args:
        model: Gives logits [B, L, V] for tokens [B, L] and sigma [B].
        schedule: The schedule that turns times into σ.
        mask_id: Id of [MASK].
    """

    def function(tokens: Tensor, times: Tensor | None) -> Tensor:
        if times is None:
            sigma = torch.zeros(len(tokens), device=tokens.device)
        else:
            # 1 - m underflows at t = 1, where σ has no bound.
            sigma = -torch.log1p(-schedule.mask_prob(times.cpu()).clamp(max=1 - 1e-12))
        return model(tokens, sigma.to(tokens.device, torch.float32))

    return from_callable(function, mask_id)
