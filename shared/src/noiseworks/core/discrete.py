"""Masked (absorbing) diffusion of tokens: schedules, loss weights, and one reverse step from given scores.

At time t each token is replaced by [MASK] with probability m(t), t = 0 clean, t = 1 all masked. Everything
here is deterministic: the caller draws proposals and random scores, say with `noiseworks.core.noise`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor

SCORES = ("confidence", "margin", "neg_entropy")


@dataclass(frozen=True)
class MaskSchedule:
    """How the share of masked tokens grows with time.

    Attributes:
        kind: Name of the family.
        mask_prob_at: float64 time -> m(t).
        weight_at: float64 time -> `m'(t)/m(t)`, the weight of the continuous-time bound.
    """

    kind: str
    mask_prob_at: Callable[[Tensor], Tensor]
    weight_at: Callable[[Tensor], Tensor]

    def mask_prob(self, t: Tensor | float) -> Tensor:
        """Return m(t), float64, for times in [0, 1] of any shape."""
        return self.mask_prob_at(torch.as_tensor(t, dtype=torch.float64))

    def weight(self, t: Tensor | float) -> Tensor:
        """Return `m'(t)/m(t)`, float64; infinite where m = 0 (Sahoo et al. 2024; Shi et al. 2024)."""
        return self.weight_at(torch.as_tensor(t, dtype=torch.float64))

    def unmask_prob(self, t: Tensor | float, s: Tensor | float) -> Tensor:
        """Return the probability `1 − m(s)/m(t)` that a masked token is revealed between t and s < t.

        Raises:
            InputError: Unless s < t.
        """
        t, s = (torch.as_tensor(time, dtype=torch.float64) for time in (t, s))
        if t.device.type == "cpu" and not bool((s < t).all()):
            raise InputError("a reverse step must go to an earlier time; swap t and s")
        return 1 - self.mask_prob(s) / self.mask_prob(t)


def linear() -> MaskSchedule:
    """Return `m = t`, weight 1/t."""
    return MaskSchedule("linear", lambda t: t, lambda t: 1 / t)


def cosine() -> MaskSchedule:
    """Return `m = cos(π/2 (1 − t))` (Chang et al. 2022, MaskGIT), weight `π/2 tan(π/2 (1 − t))`."""
    quarter = math.pi / 2
    return MaskSchedule(
        "cosine",
        lambda t: torch.cos(quarter * (1 - t)),
        lambda t: quarter * torch.tan(quarter * (1 - t)),
    )


def poly(power: float) -> MaskSchedule:
    """Return `m = t^w` (Shi et al. 2024, MD4), weight w/t.

    Raises:
        InputError: Unless power > 0.
    """
    check_number("power", power, low=0, low_open=True)
    return MaskSchedule("poly", lambda t: t**power, lambda t: power / t)


def log_linear(eps: float = 1e-3) -> MaskSchedule:
    """Return `m = (1 − ε) t` (Lou et al. 2024, SEDD; total noise `−log(1 − m)`), weight 1/t."""
    check_number("eps", eps, low=0, high=1, high_open=True)
    return MaskSchedule("log_linear", lambda t: (1 - eps) * t, lambda t: 1 / t)


def geometric(sigma_min: float = 1e-5, sigma_max: float = 20.0) -> MaskSchedule:
    """Return `m = 1 − e^{−S}`, `S = σ_min^{1−t} σ_max^t` (Lou et al. 2024), weight `S'/(e^S − 1)`."""
    check_number("sigma_min", sigma_min, low=0, low_open=True)
    check_number("sigma_max", sigma_max, low=sigma_min, low_open=True)
    rate = math.log(sigma_max / sigma_min)

    def total_noise(t: Tensor) -> Tensor:
        return sigma_min * torch.exp(rate * t)

    return MaskSchedule(
        "geometric",
        lambda t: -torch.expm1(-total_noise(t)),
        lambda t: rate * total_noise(t) / torch.expm1(total_noise(t)),
    )


def llada(eps: float = 1e-3) -> MaskSchedule:
    """Return `m = (1 − ε) t + ε` (Nie et al. 2025, LLaDA), weight `(1 − ε)/m`."""
    check_number("eps", eps, low=0, high=1, high_open=True)
    return MaskSchedule("llada", lambda t: (1 - eps) * t + eps, lambda t: (1 - eps) / ((1 - eps) * t + eps))


def masked_loss(
    cross_entropy: Tensor,
    masked: Tensor,
    weight: Tensor,
    *,
    normalize: str = "length",
    lengths: Tensor | None = None,
) -> Tensor:
    """Return the weighted masked-token loss of each sequence, (B,).

    Args:
        cross_entropy: Per-token cross-entropy, (B, L).
        masked: Which tokens were masked, bool, (B, L).
        weight: w(t), (B,).
        normalize: `length` divides by the sequence length, the bound of the likelihood per token;
            `masked` by the number of masked tokens, at least 1.
        lengths: Lengths (B,) where sequences are padded, by default L.

    Raises:
        InputError: On an unknown normalisation.
    """
    check_choice("normalize", normalize, ("length", "masked"))
    total = (cross_entropy * masked).sum(1)
    if normalize == "masked":
        count = masked.sum(1).clamp(min=1)
    else:
        count = masked.shape[1] if lengths is None else lengths
    return weight.to(total) * total / count


def transfer_counts(num_masked: Tensor | int, num_steps: int) -> Tensor:
    """Return how many tokens each step reveals, as even as can be, the first steps one more.

    Args:
        num_masked: n, a number or (B,) int64.
        num_steps: k.

    Returns:
        int64, (k,) or (B, k); rows sum to n.
    """
    check_number("num_steps", num_steps, low=1, integer=True)
    n = torch.as_tensor(num_masked).unsqueeze(-1)
    steps = torch.arange(num_steps, device=n.device)
    return n // num_steps + (steps < n % num_steps)


def token_scores(logits: Tensor, tokens: Tensor, kind: str) -> Tensor:
    """Return how sure the model is of each position, float32 at least, (B, L); higher is surer.

    Args:
        logits: (B, L, V).
        tokens: Proposed ids, int64, (B, L); read by `confidence`.
        kind: `confidence` p(token), `margin` p_1 − p_2 of the two likeliest, `neg_entropy` Σ p log p. Random
            order needs no logits: use uniform draws as scores.

    Raises:
        InputError: On an unknown kind.
    """
    check_choice("kind", kind, SCORES)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = torch.log_softmax(logits.to(dtype), -1)
    if kind == "confidence":
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).exp()
    if kind == "margin":
        top = log_probs.topk(2, dim=-1).values.exp()
        return top[..., 0] - top[..., 1]
    return torch.special.entr(log_probs.exp()).sum(-1).neg()


def select_top(scores: Tensor, eligible: Tensor, counts: Tensor | int) -> Tensor:
    """Return the `counts` best eligible positions of each row, bool, (B, L); ties go to the lowest index.

    Args:
        scores: (B, L), no NaN.
        eligible: bool, (B, L); rows with fewer than `counts` are taken whole.
        counts: A number or (B,).
    """
    order = scores.masked_fill(~eligible, -math.inf).argsort(dim=1, descending=True, stable=True)
    # −inf may be a legitimate score: eligible positions go first whatever they score.
    order = order.gather(1, (~eligible.gather(1, order)).to(torch.int8).argsort(dim=1, stable=True))
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return eligible & (rank < torch.as_tensor(counts, device=scores.device).reshape(-1, 1))


def select_threshold(scores: Tensor, eligible: Tensor, threshold: float, *, at_least: int = 1) -> Tensor:
    """Return the eligible positions that score at least `threshold`, and always the best `at_least`."""
    return (eligible & (scores >= threshold)) | select_top(scores, eligible, at_least)


class MaskedStep(NamedTuple):
    """The outcome of a masked step: the new ids and which positions changed, both (B, L)."""

    tokens: Tensor
    changed: Tensor


def unmask_step(tokens: Tensor, proposal: Tensor, selected: Tensor, mask_id: int) -> MaskedStep:
    """Reveal proposed tokens at selected masked positions; tokens that are not masked never change.

    Args:
        tokens: Present ids, int64, (B, L).
        proposal: Proposed ids, same shape, without `mask_id` where selected.
        selected: bool, same shape.
        mask_id: Id of [MASK].

    Raises:
        InputError: When a revealed proposal is itself [MASK].
    """
    changed = selected & (tokens == mask_id)
    if tokens.device.type == "cpu" and bool((changed & (proposal == mask_id)).any()):
        raise InputError(f"a proposal is the mask id {mask_id}; forbid it in the logits before drawing")
    return MaskedStep(torch.where(changed, proposal, tokens), changed)


def remask_step(
    tokens: Tensor, scores: Tensor, eligible: Tensor, counts: Tensor | int, mask_id: int
) -> MaskedStep:
    """Turn the `counts` least sure eligible tokens of each row back into [MASK]; see `select_top`."""
    changed = select_top(-scores, eligible & (tokens != mask_id), counts)
    return MaskedStep(tokens.masked_fill(changed, mask_id), changed)


def masked_log_prob(logits: Tensor, step: MaskedStep) -> Tensor:
    """Return `Σ log p(token)` over the tokens that a step revealed, float32 at least, (B,)."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = torch.log_softmax(logits.to(dtype), -1).gather(-1, step.tokens.unsqueeze(-1)).squeeze(-1)
    return log_probs.masked_fill(~step.changed, 0).sum(1)


def block_index(length: int, block_length: int, *, prompt_length: int = 0) -> Tensor:
    """Return the block that each position belongs to, int64, (length,); −1 for the prompt.

    Raises:
        InputError: When the generated part is no multiple of the block length.
    """
    check_number("block_length", block_length, low=1, integer=True)
    generated = length - prompt_length
    if generated < 0 or generated % block_length:
        raise InputError(
            f"the generated length {generated} must be a multiple of block_length {block_length}"
        )
    return (torch.arange(length) - prompt_length).div(block_length, rounding_mode="floor").clamp(min=-1)


def block_causal(blocks: Tensor) -> Tensor:
    """Return which keys (columns) each query (row) may see: its own block and earlier ones, bool."""
    return blocks.unsqueeze(-1) >= blocks.unsqueeze(-2)


def active_block(tokens: Tensor, blocks: Tensor, mask_id: int) -> Tensor:
    """Return the first block of each row that still holds a [MASK], (B,); the number of blocks when done."""
    done = int(blocks.max()) + 1
    return torch.where(tokens == mask_id, blocks, done).amin(1)


def masked_span(tokens: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """Return first and last masked position of each row, int64, (B,); (L, −1) where none is masked."""
    length = tokens.shape[1]
    positions = torch.arange(length, device=tokens.device)
    masked = tokens == mask_id
    return torch.where(masked, positions, length).amin(1), torch.where(masked, positions, -1).amax(1)
