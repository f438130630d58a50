"""How many tokens each step reveals, and how sure a model is of a token."""

import math
import re
from collections.abc import Callable
from itertools import pairwise

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.discrete import token_scores, transfer_counts
from noiseworks.core.errors import InputError
from torch import Tensor

SCHEDULES = ("even", "linear", "cosine", "pow<k>", "log", "exp", "dream")
CONFIDENCES = ("top1", "margin", "neg_entropy", "random")
_SCORE_OF = {"top1": "confidence", "margin": "margin", "neg_entropy": "neg_entropy"}
_POWER = re.compile(r"pow(\d+(?:\.\d+)?)")


def transfer_schedule(n_masks: int, steps: int, kind: str = "even", *, eps: float = 1e-3) -> list[int]:
    """Return how many of `n_masks` tokens each step reveals; they sum to `n_masks`.

    `even` is LLaDA's: the first steps reveal one more. `linear`, `cosine`, `pow<k>` (such as `pow2`), `log` and
    `exp` reveal, in all, n - floor(n γ(r)) tokens up to r = (step + 1) / steps, where γ is the share that stays
    masked. `dream` is Dream's: see `dream_counts`.

    Args:
        n_masks: Masked tokens n, at least 0.
        steps: At least 1; more steps than masks leave steps that reveal nothing.
        kind: One of `SCHEDULES`.
        eps: Last time of `dream`.

    Raises:
        InputError: On an unknown schedule or a number out of range.
    """
    check_number("n_masks", n_masks, low=0, integer=True)
    check_number("steps", steps, low=1, integer=True)
    if kind == "even":
        return transfer_counts(n_masks, steps).tolist()
    if kind == "dream":
        return dream_counts(n_masks, steps, eps)
    share = _share(kind, n_masks)
    revealed = [0]
    for step in range(steps):
        gamma = min(max(share((step + 1) / steps), 1e-6), 1.0)
        # 10 · (1 - 0.9) is 0.99… in floating point and 1 on paper.
        revealed.append(n_masks - math.floor(n_masks * gamma + 1e-9))
    return [now - before for before, now in pairwise(revealed)]


def _share(kind: str, n_masks: int) -> Callable[[float], float]:
    bits = math.log2(n_masks) if n_masks > 0 else 0.0
    power = _POWER.fullmatch(kind)
    if power:
        return lambda r: 1 - r ** float(power[1])
    if kind in ("log", "exp") and bits == 0:
        return lambda r: 0.0  # a single token is revealed at once
    shares = {
        "linear": lambda r: 1 - r,
        "cosine": lambda r: math.cos(math.pi * r / 2),
        "log": lambda r: -math.log2(r) / bits,
        "exp": lambda r: 1 - 2 ** (-bits * (1 - r)),
    }
    if kind not in shares:
        raise InputError(f"unknown schedule {kind!r}; choose one of {', '.join(SCHEDULES)}")
    return shares[kind]


def dream_counts(n_masks: int, steps: int, eps: float = 1e-3) -> list[int]:
    """Return how many tokens each step of Dream's sampler reveals.

    Step i reveals `int(masks · (1 - t_{i+1}/t_i))` of the masks that are left, in float32, on the times
    `linspace(1, eps, steps + 1)`; the last step reveals all that remain.

    Args:
        n_masks: Masked tokens.
        steps: Steps.
        eps: Last time, in (0, 1).
    """
    check_number("eps", eps, low=0, high=1, low_open=True, high_open=True)
    times = torch.linspace(1, eps, steps + 1)
    left, counts = n_masks, []
    for step in range(steps):
        share = 1 - times[step + 1] / times[step]
        counts.append(left if step == steps - 1 else int(left * share))
        left -= counts[-1]
    return counts


def confidence(
    logits: Tensor, tokens: Tensor, kind: str = "top1", generator: torch.Generator | None = None
) -> Tensor:
    """Return how sure the model is of each token, float32 at least, [B, n]; higher is surer.

    Args:
        logits: [B, n, V].
        tokens: Proposed ids, int64 [B, n].
        kind: `top1` p(token), `margin` p_1 - p_2 of the two likeliest, `neg_entropy` Σ p log p, `random` U(0, 1).
        generator: Source of `random`.

    Raises:
        InputError: On an unknown kind.
    """
    check_choice("kind", kind, CONFIDENCES)
    if kind == "random":
        where = logits.device if generator is None else generator.device
        return torch.rand(tokens.shape, generator=generator, device=where).to(logits.device)
    return token_scores(logits, tokens, _SCORE_OF[kind])
