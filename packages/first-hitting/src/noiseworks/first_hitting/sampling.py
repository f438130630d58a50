"""The first-hitting sampler: one reveal a network call, exactly as the infinitely fine reverse process (Alg. 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from noiseworks.core.discrete import MaskSchedule, linear
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least
from noiseworks.first_hitting.categorical import CORRECT, categorical
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.higher_order import Memory, correct, extrapolate
from noiseworks.first_hitting.hitting import (
    check_schedule,
    key_uniform,
    next_log_share,
    reveal_counts,
    time_of,
)
from noiseworks.first_hitting.options import Sampling
from noiseworks.kits.masked_lm.sampling import filter_logits, row_keys
from torch import Tensor


@dataclass(frozen=True)
class Masked(Options):
    """What stands for a token that is wanted.

    Attributes:
        mask_id: Id of [MASK].
    """

    mask_id: Annotated[int, at_least(0)]


@dataclass(frozen=True)
class Settings(Sampling, Masked):
    """How to sample from a model: its [MASK], then the fields of `Sampling`, then its conditioning on time.

    Attributes:
        schedule: Of the masks; by default linear. Changes the times, and the samples of time-conditioned models.
        takes_time: Whether the denoiser is called with times.
    """

    schedule: MaskSchedule | None = None
    takes_time: bool = False

    def check(self) -> None:
        """Refuse what `Sampling` refuses, and a schedule that is none.

        Raises:
            InputError: On a schedule that does not rise from 0 to 1.
        """
        super().check()
        if self.schedule is not None:
            check_schedule(self.schedule)


@dataclass(frozen=True)
class Sample:
    """What a sampler returns.

    Attributes:
        tokens: int64 [B, L], without masks.
        calls: Network calls on the rows that still had masks.
        times: Time at which each position was revealed, float64 [B, L]; NaN where it was given.
    """

    tokens: Tensor
    calls: int
    times: Tensor


@torch.no_grad()
def fhs_sample(
    denoiser: Denoiser,
    tokens: Tensor,
    settings: Settings,
    *,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Sample:
    """Replace the masks of every row by draws from the model; given tokens stay.

    Rows may hold different numbers of masks. With n masks left the next reveal is at the share m u^(1/n), its
    position is uniform among the n, and its token is drawn from the model's output on the present tokens.

    Args:
        denoiser: See `denoisers`.
        tokens: int64 [B, L], with `settings.mask_id` where a token is wanted.
        settings: How to sample.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead: a row then is the same in every batch.

    Raises:
        InputError: When tokens or settings do not fit, or the model's output cannot be drawn from.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise InputError(
            f"tokens must be whole numbers [B, L], got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if settings.method not in CORRECT and seeds is not None:
        raise InputError(f"seeds a row need one of the methods {', '.join(CORRECT)}, got {settings.method!r}")
    keys = row_keys(len(tokens), 2 * tokens.shape[1], generator, seeds, tokens.device)
    run = _Run(denoiser, tokens.clone(), settings, keys, generator)
    length = settings.block_length or tokens.shape[1]
    for first in range(0, tokens.shape[1], length):
        run.block(first, first + length)
    return Sample(run.tokens, run.calls, time_of(run.schedule, run.shares))


class _Run:
    """One sampling run; row b's position l draws from `keys[b, l]`, the clock at n masks from `keys[b, L + n - 1]`."""

    def __init__(
        self,
        denoiser: Denoiser,
        tokens: Tensor,
        settings: Settings,
        keys: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        self.denoiser, self.tokens, self.settings, self.generator = denoiser, tokens, settings, generator
        self.keys, self.clock_keys = keys.chunk(2, dim=1)
        self.schedule = settings.schedule or linear()
        self.shares = torch.full(tokens.shape, torch.nan, dtype=torch.float64, device=tokens.device)
        self.log_share = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        self.calls = self.blocks = 0
        # Revealing in the order of independent uniforms is a uniformly random order.
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        self.priority = key_uniform(self.keys, 2**41) if settings.order == "uniform" else place.double()

    def block(self, first: int, end: int) -> None:
        """Reveal the masks of positions first … end - 1."""
        inside = torch.zeros_like(self.tokens, dtype=torch.bool)
        inside[:, first:end] = True
        eligible = inside & (self.tokens == self.settings.mask_id)
        counts = eligible.sum(dim=1)
        most = int(counts.max()) if len(counts) else 0
        self.log_share.zero_()
        memory: Memory | None = None
        for step in self._plan(counts, most):
            rows = (step > 0).nonzero().squeeze(-1)
            if len(rows):
                memory = self._step(rows, step[rows], eligible, memory)
                eligible = inside & (self.tokens == self.settings.mask_id)
        self.blocks += 1

    def _plan(self, counts: Tensor, most: int) -> Tensor:
        """Return how many tokens each row reveals at each step, [steps, B]; rows end together."""
        if most == 0:
            return counts.new_zeros(0, len(counts))
        if self.settings.variant == "exact" or self.settings.steps is None:
            left = torch.arange(most, 0, -1, device=counts.device)
            return (left[:, None] <= counts[None]).long()
        plan = counts.new_zeros(self.settings.steps, len(counts))
        for row, count in enumerate(counts.tolist()):
            if count:
                steps = min(self.settings.steps, count)
                plan[len(plan) - steps :, row] = torch.tensor(reveal_counts(count, steps))
        return plan

    def _step(self, rows: Tensor, reveal: Tensor, eligible: Tensor, memory: Memory | None) -> Memory | None:
        settings, masks = self.settings, eligible[rows].sum(dim=1)
        everything = settings.order == "confidence" or settings.variant == "extrapolate"
        width = int(masks.max()) if everything else int(reveal.max())
        ranked = self.priority[rows].masked_fill(~eligible[rows], torch.inf).argsort(dim=1, stable=True)
        positions = ranked[:, :width]
        valid = torch.arange(width, device=rows.device) < (masks if everything else reveal)[:, None]
        # Where a row has fewer positions its first one stands in, and is not written.
        positions = torch.where(valid, positions, positions[:, :1])
        self._advance(rows, masks, reveal, positions, eligible)
        logits = self._call(rows, positions)
        if settings.order == "confidence":
            best = logits.amax(dim=-1) - logits.logsumexp(dim=-1)
            order = best.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
            positions = positions.gather(1, order)
            logits = logits.gather(1, order.unsqueeze(-1).expand_as(logits))
        if settings.variant == "extrapolate":
            found = Memory.of(rows, positions, valid, logits, masks, self.tokens.shape)
            logits, memory = extrapolate(logits, positions, rows, masks, memory), found
        few = int(reveal.max())
        positions, logits = positions[:, :few], logits[:, :few]
        chosen = torch.arange(few, device=rows.device) < reveal[:, None]
        self._write(rows, positions, chosen, self._draw(rows, positions, logits, 0))
        if settings.variant == "predictor_corrector" and few > 1:
            again = correct(chosen, reveal)
            self._write(rows, positions, again, torch.full_like(positions, settings.mask_id))
            active = again.any(dim=1).nonzero().squeeze(-1)
            self._write(
                rows[active],
                positions[active],
                again[active],
                self._draw(
                    rows[active], positions[active], self._call(rows[active], positions[active]), 2**40
                ),
            )
        return memory

    def _advance(
        self, rows: Tensor, masks: Tensor, reveal: Tensor, positions: Tensor, eligible: Tensor
    ) -> None:
        """Move the rows' clocks to the last of the reveals of this step, and note the masked shares."""
        for i in range(int(reveal.max())):
            active = reveal > i
            left = (masks - i).clamp(min=1)
            keys = self.clock_keys[rows].gather(1, left[:, None] - 1).squeeze(1)
            moved = next_log_share(self.log_share[rows], left, key_uniform(keys, self.blocks))
            self.log_share[rows] = torch.where(active, moved, self.log_share[rows])
            if self.settings.order != "confidence":
                self.shares[rows[active], positions[active, i]] = self.log_share[rows[active]].exp()

    def _call(self, rows: Tensor, positions: Tensor) -> Tensor:
        times = None
        if self.settings.takes_time:
            times = time_of(self.schedule, self.log_share[rows].exp())
        whole = len(rows) == len(self.tokens)
        self.calls += 1
        return self.denoiser(self.tokens if whole else self.tokens[rows], times, positions)

    def _draw(self, rows: Tensor, positions: Tensor, logits: Tensor, counter0: int) -> Tensor:
        settings, flat = self.settings, logits.reshape(-1, logits.shape[-1])
        if flat.dtype not in (torch.float32, torch.float64):
            flat = flat.float()
        if settings.temperature not in (0, 1):
            flat = flat / settings.temperature
        flat = filter_logits(flat, settings.top_p, settings.top_k)
        keys = self.keys[rows].gather(1, positions).reshape(-1) if settings.method in CORRECT else None
        drawn = categorical(
            flat,
            settings.method,
            temperature=min(settings.temperature, 1.0) if settings.temperature == 0 else 1.0,
            generator=self.generator,
            keys=keys,
            counter0=counter0,
        )
        return drawn.reshape(positions.shape)

    def _write(self, rows: Tensor, positions: Tensor, chosen: Tensor, drawn: Tensor) -> None:
        where = rows[:, None].expand_as(positions)[chosen]
        self.tokens[where, positions[chosen]] = drawn[chosen]
