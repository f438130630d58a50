"""FreeCache block decoding of LLaDA and Dream: finished positions are frozen, the rest is computed each step."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from noiseworks.core.discrete import select_threshold, select_top
from noiseworks.core.errors import InputError
from noiseworks.freecache.cache import FreeCache, Recompute
from noiseworks.freecache.options import Caching, Sampling
from noiseworks.freecache.orders import (
    block_counts,
    check_ends,
    default_order,
    dream_shares,
    ended,
    fill,
    order_scores,
    uniform,
)
from noiseworks.kits.masked_lm import (
    HostSpec,
    check_prompt,
    confidence,
    detect_host,
    draw_tokens,
    filter_logits,
    row_keys,
)
from torch import Tensor, nn


@dataclass
class Stats:
    """What a generation cost.

    Attributes:
        steps: Decoding steps; a row of a batch may stop earlier.
        calls: Calls of the masked model.
        rows: Token rows that went through its layers, over the batch.
        seconds: Seconds by part: `host`, `guide` and `total`.
        memory_bytes: Bytes of cached keys and values.
        guide_calls: Calls of the guide.
        drafted: Tokens that the masked model drafted for the guide.
        compared: Drafts up to the first rejection: those whose verdict counted.
        accepted: Drafts that the guide accepted.
        written: Tokens written by accepted runs and forced first drafts, by row.
        row_steps: Steps that a row took part in under guidance, by row.
        accepted_per_step: Mean accepted drafts of the rows, step by step.
    """

    steps: int = 0
    calls: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    guide_calls: int = 0
    drafted: int = 0
    compared: int = 0
    accepted: int = 0
    written: list[int] = field(default_factory=list)
    row_steps: list[int] = field(default_factory=list)
    accepted_per_step: list[float] = field(default_factory=list)

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafts as a share of those compared; NaN without a guide."""
        return self.accepted / self.compared if self.compared else float("nan")

    def cost(self) -> dict[str, float]:
        """Return the cost as plain numbers."""
        numbers = {
            "steps": self.steps,
            "model_calls": self.calls,
            "rows": self.rows,
            "seconds": round(self.seconds["total"], 4),
            "cache_mb": round(self.memory_bytes / 1e6, 3),
        }
        if self.guide_calls:
            numbers |= {
                "guide_calls": self.guide_calls,
                "acceptance_rate": round(self.acceptance_rate, 4),
                "seconds_model": round(self.seconds["host"], 4),
                "seconds_guide": round(self.seconds["guide"], 4),
            }
        return numbers


@dataclass
class Decoded:
    """Prompts and completions, int64 [B, P + G], and what they cost; `history` holds canvases when asked for."""

    sequences: Tensor
    stats: Stats
    history: list[Tensor] = field(default_factory=list)


def freecache_generate(
    model: nn.Module,
    input_ids: Tensor,
    sampling: Sampling = Sampling(),
    caching: Caching = Caching(),
    *,
    attention_mask: Tensor | None = None,
    spec: HostSpec | None = None,
    cache: FreeCache | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> Decoded:
    """Complete prompts block by block with frozen keys and values (FreeCache, arXiv 2505.21467).

    The first step computes everything and freezes the prompt, as it is with an all-mask answer. Every later step
    computes from the current block on (Dream: from one row before it, which predicts its first token), and a
    finished block is frozen by the commit rule. With `caching.sliding`, windows start that many tokens earlier and
    the commit index trails as far behind (the sliding window of the authors' code): the end of the prompt, where
    the question stands, then follows the answer. Rows a step grow by as many.

    By default a step reveals every token that is surer than a threshold, the confidence-aware parallel decoding of
    Fast-dLLM (arXiv 2505.22618); rows of a batch then wait for each other at the end of a block.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        sampling: Lengths, draws, and which tokens are revealed when.
        caching: What is frozen; without a cache everything is computed anew at every step, the baseline.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        spec: The host's contract; by default detected.
        cache: A cache of this model to use again, which then decides the commit rule; by default a new one.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead: a row then is the same in every batch, but for commit rule `stale` with a
            threshold, which freezes a block as the last of the rows to end saw it.
        record: Whether to keep the canvas of every step; rows that ended keep their text.

    Raises:
        InputError: When a prompt cannot be completed.
        NonFiniteError: When the model gives NaN or infinity.
    """
    spec = (cache.spec if cache is not None else detect_host(model)) if spec is None else spec
    if cache is not None and cache.model is not model:
        raise InputError("the cache belongs to another model; make a FreeCache of this one")
    if cache is None:
        cache = FreeCache(model, spec, commit=caching.commit) if caching.cache else Recompute(model, spec)
    return decode_blocks(
        cache, input_ids, attention_mask, sampling, caching, generator=generator, seeds=seeds, record=record
    )


@torch.no_grad()
def decode_blocks(
    cache: FreeCache | Recompute,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    sampling: Sampling,
    caching: Caching,
    *,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> Decoded:
    """Complete prompts block by block with any cache; `freecache_generate` says what the arguments are."""
    began = time.perf_counter()
    spec = cache.spec
    check_prompt(input_ids, spec, sampling.gen_length)
    check_ends(spec, sampling.early_stop)
    prompt, width = input_ids.shape[1], sampling.block_length
    rows = Rows.begin(cache, input_ids, attention_mask, sampling.gen_length)
    keys = row_keys(len(input_ids), sampling.gen_length, generator, seeds, input_ids.device)
    counts = block_counts(spec, sampling) if sampling.reveal == "schedule" else []
    stats = Stats()
    output = Decoded(rows.sequences, stats)
    every, sliding = caching.refresh_every, caching.width(width)
    for block in range(sampling.blocks):
        low = prompt + block * width
        start = max(low - spec.shift - sliding, 0)
        whole = block == 0 or (every > 0 and block % every == 0)
        for step in _block_steps(rows, low, sampling):
            window = 0 if whole and step == 0 else start
            logits = cache.forward(rows.tokens, window, positions=(low, low + width))
            if stats.steps == 0:
                cache.commit(start)
            here = rows.tokens[:, low : low + width]
            chosen, drawn = reveal(
                logits, here, keys[:, low - prompt :], low, rows, sampling, counts, stats.steps
            )
            rows.tokens[:, low : low + width] = torch.where(chosen, drawn, here)
            stats.steps += 1
            if sampling.early_stop:
                keys = keys[rows.stop_ended(cache, sampling.early_stop)]
            if record:
                output.history.append(rows.snapshot())
            if not rows.active:
                break
        cache.check_finite(rows.tokens)
        if not rows.active:
            break
        following = max(low + width - spec.shift - sliding, 0)
        if block < sampling.blocks - 1 and following > start:
            cache.finish(rows.tokens, following)
    output.sequences = rows.snapshot()
    stats.calls, stats.rows, stats.memory_bytes = cache.calls, cache.rows, cache.memory_bytes()
    stats.seconds = {"total": time.perf_counter() - began}
    return output


def _block_steps(rows: "Rows", low: int, sampling: Sampling) -> Iterator[int]:
    """Yield the numbers of the steps of the block at `low`: those of the schedule, or until no mask is left."""
    if sampling.reveal == "schedule":
        yield from range(sampling.block_steps)
        return
    for step in itertools.count():
        if not bool((rows.tokens[:, low : low + sampling.block_length] == rows.spec.mask_id).any()):
            return
        yield step


def reveal(
    logits: Tensor,
    here: Tensor,
    keys: Tensor,
    low: int,
    rows: "Rows",
    sampling: Sampling,
    counts: list[int],
    call: int,
) -> tuple[Tensor, Tensor]:
    """Return which tokens of a block a step reveals, bool [B, n], and the drawn tokens, int64 [B, n].

    Args:
        logits: Aligned logits of the block, [B, n, V].
        here: The block's tokens.
        keys: Random keys from the block on, int64 [B, >= n].
        low: First position of the block.
        rows: The canvas.
        sampling: How to draw and order.
        counts: With a schedule: tokens to reveal, step by step.
        call: Number of the step.
    """
    spec, width = rows.spec, here.shape[1]
    keys = keys[:, :width]
    warm = sampling.temperature > 0
    shaped = logits / sampling.temperature if warm else logits
    shaped = filter_logits(shaped, sampling.top_p, sampling.top_k)
    drawn = draw_tokens(shaped, keys, temperature=1.0 if warm else 0.0, call=call)
    masked = here == spec.mask_id
    if sampling.reveal == "threshold":
        return select_threshold(confidence(logits, drawn, "top1"), masked, sampling.threshold), drawn
    order = sampling.order or default_order(spec)
    where = torch.arange(low, low + width, device=here.device)
    uniforms = uniform(keys, call) if order in ("random", "origin") else keys
    scores = order_scores(order, logits, shaped, drawn, where, rows.tokens.shape[1], uniforms)
    if order == "origin":
        # Each token by itself with the step's probability; the block's last step reveals all.
        last = (call + 1) % sampling.block_steps == 0
        shares = dream_shares(sampling.blocks * sampling.block_steps, sampling.eps)
        return masked & (uniforms < (1.0 if last else float(shares[call]))), drawn
    return select_top(scores, masked, counts[call]), drawn


@dataclass
class Rows:
    """The canvases of the rows that still decode, and the finished ones.

    Attributes:
        sequences: All rows, int64 [B, N]; finished ones are final.
        tokens: The rows that still decode, int64 [b, N].
        active: Their indices in `sequences`.
        prompt: Length P of the prompts.
        spec: The host's contract.
    """

    sequences: Tensor
    tokens: Tensor
    active: list[int]
    prompt: int
    spec: HostSpec

    @classmethod
    def begin(cls, cache, input_ids: Tensor, attention_mask: Tensor | None, gen_length: int) -> "Rows":
        """Return canvases of prompts and masks, and reset the cache for them."""
        spec = cache.spec
        masks = input_ids.new_full((len(input_ids), gen_length), spec.mask_id)
        tokens = torch.cat([input_ids, masks], dim=1)
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise InputError(
                    f"attention_mask needs the prompts' shape {tuple(input_ids.shape)}, "
                    f"got {tuple(attention_mask.shape)}"
                )
            attention_mask = torch.cat([attention_mask.long(), torch.ones_like(masks)], dim=1)
        cache.reset(*tokens.shape, attention_mask)
        return cls(tokens.clone(), tokens, list(range(len(tokens))), input_ids.shape[1], spec)

    def stop_ended(self, cache, consecutive: int) -> list[int]:
        """Fill texts that have ended, take them out of the batch and the cache; return the rows that stay."""
        answers = self.tokens[:, self.prompt :]
        done, cut = ended(answers, self.spec, consecutive, rightmost=self.spec.kind == "dream")
        # The one copy to the host of a step.
        if not bool(done.any()):
            return list(range(len(self.active)))
        self.tokens[:, self.prompt :] = fill(answers, done, cut, self.spec)
        return self.drop(cache, done)

    def drop(self, cache, done: Tensor) -> list[int]:
        """Take finished rows out of the batch and the cache; return the indices of the rows that stay."""
        self.sequences = self.snapshot()
        kept = [row for row, over in enumerate(done.tolist()) if not over]
        self.tokens, self.active = self.tokens[kept], [self.active[row] for row in kept]
        if kept:
            cache.keep(kept)
        return kept

    def snapshot(self) -> Tensor:
        """Return all rows as they are now, int64 [B, N]."""
        now = self.sequences.clone()
        now[self.active] = self.tokens
        return now
