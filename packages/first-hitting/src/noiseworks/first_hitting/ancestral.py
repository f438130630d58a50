"""The baseline: ancestral sampling on a grid of times, in full and in an equivalent cheap form."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.discrete import MaskSchedule, linear
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, below
from noiseworks.first_hitting.categorical import categorical
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.options import Method
from torch import Tensor


@dataclass(frozen=True)
class AncestralSettings(Options):
    """How to sample.

    Attributes:
        mask_id: Id of [MASK].
        num_steps: T, steps of the grid from 1 to `eps`.
        schedule: Of the masks; by default linear.
        eps: Last time of the grid.
        method: How tokens are drawn, see `categorical`.
        bound: Largest Gumbel M of method `gumbel_trunc`, by default that of float32 uniforms.
        cache: Reuse a row's output while its tokens do not change (MDLM does so for whole batches); not for
            time-conditioned models.
        lazy: Draw only where a token is revealed: k ~ Binomial(n, δ), k random positions, one draw each. The
            distribution is the same.
        final: What becomes of the masks that are left at `eps`: `draw`, `argmax` or `none`.
        takes_time: Whether the denoiser is called with times.
    """

    mask_id: Annotated[int, at_least(0)]
    num_steps: Annotated[int, at_least(1)] = 1024
    schedule: MaskSchedule | None = None
    eps: Annotated[float, above(0), below(1)] = 1e-5
    method: Method = "gumbel64"
    bound: float | None = None
    cache: bool = True
    lazy: bool = False
    final: Literal["draw", "argmax", "none"] = "draw"
    takes_time: bool = False

    def check(self) -> None:
        """Refuse reused outputs of a time-conditioned model.

        Raises:
            InputError: On `cache` with `takes_time`.
        """
        if self.cache and self.takes_time:
            raise InputError("a time-conditioned model has another output at every time: set cache=False")


@dataclass(frozen=True)
class AncestralSample:
    """What the sampler returns.

    Attributes:
        tokens: int64 [B, L].
        calls: Network calls, the mean over rows.
        draws: Categorical draws over the vocabulary.
    """

    tokens: Tensor
    calls: float
    draws: int


@torch.no_grad()
def ancestral_sample(
    denoiser: Denoiser,
    tokens: Tensor,
    settings: AncestralSettings,
    *,
    generator: torch.Generator | None = None,
) -> AncestralSample:
    """Replace masks by ancestral sampling: each stays masked with probability m(s) / m(t) from t to s.

    Args:
        denoiser: See `denoisers`.
        tokens: int64 [B, L].
        settings: How to sample.
        generator: Source of randomness.

    Raises:
        InputError: When the model's output cannot be drawn from.
    """
    schedule, mask_id = settings.schedule or linear(), settings.mask_id
    times = torch.linspace(1, settings.eps, settings.num_steps + 1, dtype=torch.float64)
    delta = schedule.unmask_prob(times[:-1], times[1:]).tolist()
    tokens, cache, draws = tokens.clone(), _Cache(denoiser, tokens), 0
    for step in range(settings.num_steps):
        masked = tokens == mask_id
        if settings.lazy:
            masked = masked & _bernoulli(masked, delta[step], generator)
        rows = masked.any(dim=1)
        if not bool(rows.any()):
            if settings.lazy:
                continue
            break
        if not settings.cache:
            cache.stale[:] = True
        output = cache.output(tokens, rows, times[step] if settings.takes_time else None)[masked]
        draws += len(output)
        if settings.lazy:
            tokens[masked] = categorical(output, "cdf64", generator=generator)
            cache.stale |= rows
            continue
        drawn = categorical(
            _with_mask(output, delta[step]), settings.method, generator=generator, bound=settings.bound
        )
        tokens[masked] = torch.where(drawn == output.shape[-1], mask_id, drawn)
        cache.stale |= (masked & (tokens != mask_id)).any(dim=1)
    masked = tokens == mask_id
    if settings.final != "none" and bool(masked.any()):
        output = cache.output(tokens, masked.any(dim=1), times[-1] if settings.takes_time else None)[masked]
        temperature = 0.0 if settings.final == "argmax" else 1.0
        tokens[masked] = categorical(output, "cdf64", temperature=temperature, generator=generator)
        draws += len(output)
    return AncestralSample(tokens, cache.row_calls / max(1, len(tokens)), draws)


class _Cache:
    """The last output of every row, computed anew only for rows that changed."""

    def __init__(self, denoiser: Denoiser, tokens: Tensor) -> None:
        self.denoiser, self.row_calls = denoiser, 0
        self.stale = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        self.everywhere = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        self.kept: Tensor | None = None

    def output(self, tokens: Tensor, rows: Tensor, time: Tensor | None) -> Tensor:
        """Return [B, L, V], up to date for `rows`, bool [B]."""
        needed = self.stale & rows
        count = int(needed.sum())
        if count:
            whole = count == len(tokens)
            times = None if time is None else time.expand(count).to(tokens.device)
            part = tokens if whole else tokens[needed]
            found = self.denoiser(part, times, self.everywhere[:count])
            if whole or self.kept is None:
                shape = (*tokens.shape, found.shape[-1])
                self.kept = found if whole else found.new_zeros(shape).index_put((needed,), found)
            else:
                self.kept[needed] = found
            self.stale &= ~needed
            self.row_calls += count
        return self.kept


def _with_mask(logits: Tensor, delta: float) -> Tensor:
    """Return log-probabilities of the V tokens, times δ, and of staying masked, [R, V + 1]."""
    kept = torch.log1p(torch.tensor(-delta, dtype=torch.float64)) if delta < 1 else torch.tensor(-torch.inf)
    tokens = logits.log_softmax(dim=-1) + torch.tensor(delta, dtype=torch.float64).log().to(logits.dtype)
    return torch.cat([tokens, kept.to(logits).expand(len(logits), 1)], dim=-1)


def _bernoulli(like: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    uniform = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float64)
    return (uniform < probability).to(like.device)


def expected_calls(length: int, num_steps: int) -> float:
    """Return the mean network calls of a cached run of one row, T (1 - (1 - 1/T)^L), for the linear schedule."""
    check_number("length", length, low=1, integer=True)
    check_number("num_steps", num_steps, low=1, integer=True)
    return num_steps * (1 - (1 - 1 / num_steps) ** length)
