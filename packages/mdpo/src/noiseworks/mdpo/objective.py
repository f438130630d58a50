"""The MDPO loss: clipped policy gradient on the masked tokens of chosen steps, and its baselines.

Everything here is a pure function of log-probabilities; shapes are [G, L] for one group at one step, or
[N, G, L] for several, whose losses are averaged.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.logp import selective_logp
from noiseworks.mdpo.options import KLKind
from torch import Tensor

COUNT_FLOOR = 1e-4


@dataclass(frozen=True)
class LossStats:
    """What a loss looked like, detached scalars.

    Attributes:
        kl: Mean estimate of KL(policy || reference) on the masked tokens.
        ratio: Mean probability ratio to the policy that drew the rollouts.
        clipped: Share of masked tokens whose ratio the clip cut off.
        tokens: Masked tokens.
    """

    kl: float
    ratio: float
    clipped: float
    tokens: int


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / τ) at the targets, float32 at least; differentiable.

    The authors divide by τ plus the epsilon of the logits' dtype, which changes the policy noticeably in
    bfloat16; here τ > 0 is required and the arithmetic is float32.

    Args:
        logits: [..., V], any floating dtype.
        targets: int64 [...].
        temperature: τ of the rollouts, above 0.

    Raises:
        InputError: When τ is not above 0.
    """
    check_number("temperature", temperature, low=0, low_open=True)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return selective_logp(logits.to(wide) / temperature, targets).logp


def kl_estimate(logp: Tensor, logp_ref: Tensor, kind: KLKind = "k2") -> Tensor:
    """Return a per-token estimate of KL(policy || reference) from samples of the policy.

    With d = log p_ref − log p: `k1` −d, `k2` d²/2 (the authors' choice), `k3` exp(d) − 1 − d.

    Raises:
        InputError: On an unknown kind.
    """
    check_choice("kl", kind, get_args(KLKind))
    d = logp_ref - logp
    if kind == "k1":
        return -d
    return d.square() / 2 if kind == "k2" else torch.expm1(d) - d


def clipped_policy_loss(logp: Tensor, logp_old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return −min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) per token, ρ = exp(logp − logp_old)."""
    ratio = (logp - logp_old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def length_scale(mask: Tensor, length: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return λ = L / (n + 1e−4) per sequence, [..., 1]: early steps with many masks weigh less per token.

    Args:
        mask: Masked positions M, bool [..., L].
        length: L, where `mask` holds only part of the positions.
        dtype: Floating type of the result.
    """
    n = mask.sum(dim=-1, keepdim=True, dtype=dtype)
    return (mask.shape[-1] if length is None else length) / (n + COUNT_FLOOR)


def mdpo_loss(
    logp: Tensor,
    logp_old: Tensor | None,
    logp_ref: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    *,
    clip: float = 0.2,
    beta: float = 0.02,
    kl: KLKind = "k2",
    length: int | None = None,
) -> tuple[Tensor, LossStats]:
    """Return the loss of a micro-batch: Σ_seq Σ_{i∈M} w_i ℓ_i / (Σ n + 1e−4).

    ℓ_i = −min(ρ_i Â, clip(ρ_i) Â) λ + β k_i; λ multiplies the policy term alone.

    Args:
        logp: Log-probabilities of the rollouts' predictions, [..., G, L].
        logp_old: The same under the policy that drew them, or None for the present one (ratio 1).
        logp_ref: The same under the reference model, or None without it (then β k is dropped).
        advantages: Â of each rollout at this step, [..., G].
        mask: Positions that were masked in the step's input, bool [..., G, L].
        weight: Confidence of each prediction, [..., G, L], or None for 1; no gradient flows into it.
        clip: ε_c.
        beta: β.
        kl: Estimator of the KL term.
        length: L of λ, where the tensors hold only part of the positions.

    Returns:
        The loss (mean over leading dimensions) and its statistics.

    Raises:
        InputError: When shapes do not fit.
    """
    if mask.shape != logp.shape or advantages.shape != logp.shape[:-1]:
        raise InputError(
            f"need logp and mask [..., G, L] and advantages [..., G], got {tuple(logp.shape)}, "
            f"{tuple(mask.shape)} and {tuple(advantages.shape)}"
        )
    old = logp.detach() if logp_old is None else logp_old
    spread = advantages.to(logp).unsqueeze(-1).expand_as(logp)
    token = clipped_policy_loss(logp, old, spread, clip) * length_scale(mask, length, logp.dtype)
    estimate = torch.zeros_like(logp)
    if logp_ref is not None:
        estimate = kl_estimate(logp, logp_ref, kl)
        token = token + beta * estimate
    if weight is not None:
        token = token * weight.detach()
    total = token.masked_fill(~mask, 0).sum(dim=(-2, -1))
    loss = (total / (mask.sum(dim=(-2, -1), dtype=logp.dtype) + COUNT_FLOOR)).mean()
    return loss, _stats(logp, old, estimate, spread, mask, clip)


def _stats(logp: Tensor, old: Tensor, kl: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> LossStats:
    with torch.no_grad():
        ratio, n = (logp - old).exp(), mask.sum().clamp(min=1)
        cut = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
        means = [(value.masked_fill(~mask, 0).sum() / n).item() for value in (kl, ratio, cut.to(logp))]
    return LossStats(*means, tokens=int(mask.sum()))


def diffu_grpo_loss(
    logp: Tensor,
    logp_old: Tensor | None,
    logp_ref: Tensor | None,
    advantages: Tensor,
    *,
    clip: float = 0.5,
    beta: float = 0.04,
) -> tuple[Tensor, LossStats]:
    """Return the loss of diffu-GRPO (Zhao et al. 2025, arXiv 2504.12216), the baseline estimator.

    The log-probabilities come from one pass over the fully masked completion behind a prompt whose tokens are
    masked with probability 0.15; the advantage is the final reward relative to the group.

    Args:
        logp: Log-probabilities of the completion's tokens, [..., G, L].
        logp_old: The same under the policy that drew the completions, or None for the present one.
        logp_ref: The same under the reference model, or None.
        advantages: [..., G].
        clip: ε.
        beta: Weight of the k3 estimate of the KL divergence.
    """
    old = logp.detach() if logp_old is None else logp_old
    spread = advantages.to(logp).unsqueeze(-1).expand_as(logp)
    token = clipped_policy_loss(logp, old, spread, clip)
    estimate = torch.zeros_like(logp)
    if logp_ref is not None:
        estimate = kl_estimate(logp, logp_ref, "k3")
        token = token + beta * estimate
    everything = torch.ones_like(logp, dtype=torch.bool)
    return token.mean(), _stats(logp, old, estimate, spread, everything, clip)


def sft_loss(logp: Tensor, mask: Tensor, mask_prob: Tensor, lengths: Tensor) -> Tensor:
    """Return LLaDA's supervised loss (Nie et al. 2025): −Σ_{i∈M} log p_i / (t · answer length), mean over rows.

    Args:
        logp: Log-probabilities of the answer's tokens given the partly masked answer, [B, L].
        mask: Which of them were masked, bool [B, L].
        mask_prob: t, the probability with which each was masked, [B].
        lengths: Answer lengths (with the EOS that fills them up), [B].
    """
    total = -logp.masked_fill(~mask, 0).sum(dim=1)
    return (total / (mask_prob.to(total) * lengths)).mean()
