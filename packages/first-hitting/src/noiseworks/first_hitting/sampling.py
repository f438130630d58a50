"""The first-hitting sampler: one reveal a network call, exactly as the infinitely fine reverse process (Alg. 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from noiseworks.core.discrete import MaskSchedule, linear
from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, at_least
from noiseworks.first_hitting.categorical import CORRECT, categorical, inverse_cdf, unit_uniform
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
    """One sampling run; row b's position l draws from `keys[b, l]`, the clock at n masks from `keys[b, L + n - 1]`.

    What does not depend on the network is drawn for a whole block at once: the order of its reveals, their times, and
    the uniforms of their tokens. Rows are aligned at the end of the block: column j holds what happens when
    `most - j` masks are left.
    """

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
        self.calls = self.blocks = 0
        # Revealing in the order of independent uniforms is a uniformly random order.
        place = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        self.priority = key_uniform(self.keys, 2**41) if settings.order == "uniform" else place.double()
        self.uniforms: dict[int, Tensor] = {}

    def block(self, first: int, end: int) -> None:
        """Reveal the masks of positions first … end - 1."""
        inside = torch.zeros_like(self.tokens, dtype=torch.bool)
        inside[:, first:end] = True
        self.order, column = self._ranked(inside)
        counts, most = (column >= 0).sum(dim=1), self.order.shape[1]
        left, memory = counts.tolist(), None
        self.clock = self._log_shares(counts, most)
        if self.settings.order != "confidence":
            row, place = (column >= 0).nonzero(as_tuple=True)
            self.shares[row, self.order[row, place]] = self.clock[row, place].exp()
        for reveal in self._plan(left, most):
            rows = [row for row, count in enumerate(reveal) if count]
            if not rows:
                continue
            memory = self._step(rows, left, reveal, most, memory)
            left = [have - count for have, count in zip(left, reveal, strict=True)]
            if self.settings.order == "confidence":
                # Not the first ones of the order were revealed.
                self.order = F.pad(self._ranked(inside)[0], (most - max(left), 0))
        self.blocks += 1

    def _ranked(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masked positions in order, right aligned, int64 [B, most], and their ranks; below 0 is none."""
        eligible = inside & (self.tokens == self.settings.mask_id)
        counts = eligible.sum(dim=1)
        most = int(counts.max()) if len(counts) else 0
        ranked = self.priority.masked_fill(~eligible, torch.inf).argsort(dim=1, stable=True)
        rank = torch.arange(most, device=counts.device) - (most - counts)[:, None]
        return ranked.gather(1, rank.clamp(min=0)), rank

    def _log_shares(self, counts: Tensor, most: int) -> Tensor:
        """Return log m after the reveal at which n masks are left, in column `most - n`, float64 [B, most]."""
        masks = torch.arange(most, 0, -1, device=counts.device)
        uniform = key_uniform(self.clock_keys[:, :most].flip(1), self.blocks)
        steps = next_log_share(torch.zeros_like(uniform), masks, uniform)
        return steps.masked_fill(masks > counts[:, None], 0).cumsum(dim=1)

    def _plan(self, counts: list[int], most: int) -> list[list[int]]:
        """Return how many tokens each row reveals at each step; rows end together."""
        if most == 0:
            return []
        if self.settings.variant == "exact" or self.settings.steps is None:
            return [[int(count >= left) for count in counts] for left in range(most, 0, -1)]
        steps = [reveal_counts(count, min(self.settings.steps, count)) if count else [] for count in counts]
        return [
            [
                row[step - self.settings.steps] if len(row) >= self.settings.steps - step else 0
                for row in steps
            ]
            for step in range(self.settings.steps)
        ]

    def _step(
        self, rows: list[int], left: list[int], reveal: list[int], most: int, memory: Memory | None
    ) -> Memory | None:
        """Reveal tokens of some rows from one output (two, for the corrector)."""
        settings, device = self.settings, self.tokens.device
        masks, counts = [left[row] for row in rows], [reveal[row] for row in rows]
        index = None if len(rows) == len(self.tokens) else torch.tensor(rows, device=device)
        everything = settings.order == "confidence" or settings.variant == "extrapolate"
        widths, few = (masks if everything else counts), max(counts)
        column, order = most - masks[0], _rows(self.order, index)
        if len({*zip(masks, counts, strict=True)}) == 1:
            valid, positions = None, order[:, column : column + widths[0]]
            reached = _rows(self.clock, index)[:, column + few - 1]
        else:
            start = most - torch.tensor(masks, device=device)[:, None]
            place = torch.arange(max(widths), device=device)
            valid = place < torch.tensor(widths, device=device)[:, None]
            # Where a row has fewer positions its first one stands in, and is not written.
            positions = order.gather(1, torch.where(valid, start + place, start))
            last = start + torch.tensor(counts, device=device)[:, None] - 1
            reached = _rows(self.clock, index).gather(1, last).squeeze(1)
        logits = self._call(index, positions, reached)
        if settings.order == "confidence":
            best = logits.amax(dim=-1) - logits.logsumexp(dim=-1)
            best = best if valid is None else best.masked_fill(~valid, -torch.inf)
            ranked = best.argsort(dim=1, descending=True, stable=True)
            positions = positions.gather(1, ranked)
            logits = logits.gather(1, ranked.unsqueeze(-1).expand_as(logits))
        if settings.variant == "extrapolate":
            every = torch.tensor(rows, device=device)
            known = torch.ones_like(positions, dtype=torch.bool) if valid is None else valid
            have = torch.tensor(masks, device=device)
            found = Memory.of(every, positions, known, logits, have, self.tokens.shape)
            logits, memory = extrapolate(logits, positions, every, have, memory), found
        positions, logits = positions[:, :few], logits[:, :few]
        chosen = None
        if min(counts) < few:
            chosen = torch.arange(few, device=device) < torch.tensor(counts, device=device)[:, None]
        self._write(index, positions, chosen, self._draw(index, positions, logits, 0))
        if settings.variant == "predictor_corrector" and few > 1:
            self._correct(rows, positions, chosen, counts, reached)
        return memory

    def _correct(
        self, rows: list[int], positions: Tensor, chosen: Tensor | None, counts: list[int], reached: Tensor
    ) -> None:
        """Mask some of the tokens that a step revealed, and draw them again from an output that sees the others."""
        every, reveal = (torch.tensor(part, device=positions.device) for part in (rows, counts))
        chosen = torch.ones_like(positions, dtype=torch.bool) if chosen is None else chosen
        again = correct(chosen, reveal)
        self._write(every, positions, again, torch.full_like(positions, self.settings.mask_id))
        active = again.any(dim=1).nonzero().squeeze(-1)
        index, where = every[active], positions[active]
        logits = self._call(index, where, reached[active])
        self._write(index, where, again[active], self._draw(index, where, logits, 2**40))

    def _call(self, index: Tensor | None, positions: Tensor, log_share: Tensor) -> Tensor:
        times = time_of(self.schedule, log_share.exp()) if self.settings.takes_time else None
        self.calls += 1
        return self.denoiser(_rows(self.tokens, index), times, positions)

    def _draw(self, index: Tensor | None, positions: Tensor, logits: Tensor, counter0: int) -> Tensor:
        settings, flat = self.settings, logits.reshape(-1, logits.shape[-1])
        if flat.dtype not in (torch.float32, torch.float64):
            flat = flat.float()
        if settings.temperature not in (0, 1):
            flat = flat / settings.temperature
        flat = filter_logits(flat, settings.top_p, settings.top_k)
        if settings.method == "cdf64" and settings.temperature > 0:
            if counter0 not in self.uniforms:
                self.uniforms[counter0] = unit_uniform(self.keys, counter0)
            uniform = _rows(self.uniforms[counter0], index).gather(1, positions)
            return inverse_cdf(flat, uniform.reshape(-1, 1)).reshape(positions.shape)
        keys = _rows(self.keys, index).gather(1, positions).reshape(-1)
        drawn = categorical(
            flat,
            settings.method,
            temperature=float(settings.temperature > 0),
            generator=self.generator,
            keys=keys if settings.method in CORRECT else None,
            counter0=counter0,
            bound=settings.bound,
        )
        return drawn.reshape(positions.shape)

    def _write(self, index: Tensor | None, positions: Tensor, chosen: Tensor | None, drawn: Tensor) -> None:
        if index is None and chosen is None:
            self.tokens.scatter_(1, positions, drawn)
            return
        every = torch.arange(len(self.tokens), device=positions.device) if index is None else index
        where = every[:, None].expand_as(positions)
        if chosen is not None:
            where, positions, drawn = where[chosen], positions[chosen], drawn[chosen]
        self.tokens[where, positions] = drawn


def _rows(tensor: Tensor, index: Tensor | None) -> Tensor:
    """Return some rows, or the tensor itself for all of them."""
    return tensor if index is None else tensor[index]
