"""FreeCache block decoding of LLaDA and Dream: finished positions are frozen, the rest is computed each step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.discrete import select_top
from noiseworks.core.errors import InputError
from noiseworks.freecache.cache import CommitRule, FreeCache, Recompute
from noiseworks.freecache.orders import (
    block_counts,
    check_ends,
    check_order,
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
    detect_host,
    draw_tokens,
    filter_logits,
    row_keys,
)
from noiseworks.kits.masked_lm.decoding import check_blocks
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


@dataclass
class Decoded:
    """Prompts and completions, int64 [B, P + G], and what they cost; `history` holds canvases when asked for."""

    sequences: Tensor
    stats: Stats
    history: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How block-wise decoding draws and orders tokens.

    Attributes:
        gen_length: Tokens to generate G, a multiple of `block_length`.
        block_length: Tokens a block B.
        steps: Steps in all, a multiple of the number of blocks; None for one a token.
        order: One of `noiseworks.freecache.orders.ORDERS`; None for the host's usual one.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus.
        top_k: Tokens kept.
        early_stop: Ends of text in a row that end a row's decoding; 0 decodes every token.
        refresh_every: Blocks after which the whole canvas is computed anew; 0 for never.
        eps: Last time of Dream's schedule.
        sliding: Clean tokens before the block that every step computes anew; 0 freezes up to the block.
    """

    gen_length: int = 128
    block_length: int = 32
    steps: int | None = None
    order: str | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    early_stop: int = 1
    refresh_every: int = 0
    eps: float = 1e-3
    sliding: int = 0


def freecache_generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    gen_length: int = 128,
    block_length: int = 32,
    steps: int | None = None,
    order: str | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    commit: CommitRule = "lazy",
    refresh_every: int = 0,
    early_stop: int = 1,
    eps: float = 1e-3,
    sliding: int = 0,
    spec: HostSpec | None = None,
    cache: FreeCache | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> Decoded:
    """Complete prompts block by block with frozen keys and values (FreeCache, arXiv 2505.21467).

    The first step computes everything and freezes the prompt, as it is with an all-mask answer. Every later step
    computes from the current block on (Dream: from one row before it, which predicts its first token), and a
    finished block is frozen by the commit rule. With `sliding`, windows start that many tokens earlier and the
    commit index trails as far behind (the sliding window of the authors' code): the end of the prompt, where the
    question stands, then follows the answer. Rows a step grow by `sliding`.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        gen_length: Tokens to generate, a multiple of `block_length`.
        block_length: Tokens a block.
        steps: Steps in all, a multiple of the number of blocks; by default one a token.
        order: One of `noiseworks.freecache.orders.ORDERS`: `low_confidence` (LLaDA's default), `entropy` (Dream's
            default), `maskgit_plus`, `topk_margin`, `position_weighted`, `origin` and `random`.
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus.
        top_k: Tokens kept.
        commit: `lazy`, `stale` (the authors' code) or `eager`; see `FreeCache`.
        refresh_every: Blocks after which the whole canvas is computed anew; 0 for never.
        early_stop: Ends of text in a row that end a row's decoding; 0 decodes every token.
        eps: Last time of Dream's schedule.
        sliding: Clean tokens before the block that every step computes anew; 0 freezes up to the block. The
            authors' window has 128.
        spec: The host's contract; by default detected.
        cache: A cache of this model to use again, which then decides the commit rule; by default a new one.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead: a row's draws then are the same in every batch.
        record: Whether to keep the canvas of every step; rows that ended keep their text.

    Raises:
        InputError: When lengths and steps do not fit, or a prompt cannot be completed.
        NonFiniteError: When the model gives NaN or infinity.
    """
    spec = (cache.spec if cache is not None else detect_host(model)) if spec is None else spec
    if cache is not None and cache.model is not model:
        raise InputError("the cache belongs to another model; make a FreeCache of this one")
    sampling = Sampling(
        gen_length,
        block_length,
        steps,
        order,
        temperature,
        top_p,
        top_k,
        early_stop,
        refresh_every,
        eps,
        sliding,
    )
    cache = FreeCache(model, spec, commit=commit) if cache is None else cache
    return decode_blocks(
        cache, input_ids, attention_mask, sampling, generator=generator, seeds=seeds, record=record
    )


@torch.no_grad()
def decode_blocks(
    cache: FreeCache | Recompute,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    sampling: Sampling,
    *,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> Decoded:
    """Complete prompts block by block with any cache; `freecache_generate` says what the arguments are."""
    began = time.perf_counter()
    spec = cache.spec
    sampling, blocks = checked(sampling, input_ids, spec)
    prompt, width = input_ids.shape[1], sampling.block_length
    rows = Rows.begin(cache, input_ids, attention_mask, sampling.gen_length)
    keys = row_keys(len(input_ids), sampling.gen_length, generator, seeds, input_ids.device)
    counts = block_counts(spec, sampling.gen_length, width, sampling.steps, sampling.eps)
    output = Decoded(rows.sequences, Stats())
    for block in range(blocks):
        low = prompt + block * width
        start = window_start(low, spec, sampling)
        whole = block == 0 or (sampling.refresh_every > 0 and block % sampling.refresh_every == 0)
        for step in range(sampling.steps // blocks):
            window = 0 if whole and step == 0 else start
            logits = cache.forward(rows.tokens, window, positions=(low, low + width))
            if output.stats.steps == 0:
                cache.commit(start)
            here = rows.tokens[:, low : low + width]
            call = output.stats.steps
            chosen, drawn = reveal(logits, here, keys[:, low - prompt :], low, rows, sampling, counts, call)
            rows.tokens[:, low : low + width] = torch.where(chosen, drawn, here)
            output.stats.steps += 1
            if sampling.early_stop:
                keys = keys[rows.stop_ended(cache, sampling.early_stop)]
            if record:
                output.history.append(rows.snapshot())
            if not rows.active:
                break
        cache.check_finite(rows.tokens)
        if not rows.active:
            break
        following = window_start(low + width, spec, sampling)
        if block < blocks - 1 and following > start:
            cache.finish(rows.tokens, following)
    output.sequences = rows.snapshot()
    output.stats.calls, output.stats.rows = cache.calls, cache.rows
    output.stats.memory_bytes = cache.memory_bytes()
    output.stats.seconds = {"total": time.perf_counter() - began}
    return output


def window_start(low: int, spec: HostSpec, sampling: Sampling) -> int:
    """Return where windows start while the block at `low` is decoded, which is also what is frozen by then."""
    return max(low - spec.shift - sampling.sliding, 0)


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
        counts: Tokens to reveal, step by step.
        call: Number of the step.
    """
    spec, width = rows.spec, here.shape[1]
    keys = keys[:, :width]
    warm = sampling.temperature > 0
    shaped = logits / sampling.temperature if warm else logits
    shaped = filter_logits(shaped, sampling.top_p, sampling.top_k)
    drawn = draw_tokens(shaped, keys, temperature=1.0 if warm else 0.0, call=call)
    masked = here == spec.mask_id
    where = torch.arange(low, low + width, device=here.device)
    uniforms = uniform(keys, call) if sampling.order in ("random", "origin") else keys
    scores = order_scores(sampling.order, logits, shaped, drawn, where, rows.tokens.shape[1], uniforms)
    if sampling.order == "origin":
        # Each token by itself with the step's probability; the block's last step reveals all.
        blocks = sampling.gen_length // width
        last = (call + 1) % (sampling.steps // blocks) == 0
        share = 1.0 if last else float(dream_shares(sampling.steps, sampling.eps)[call])
        return masked & (uniforms < share), drawn
    return select_top(scores, masked, counts[call]), drawn


def checked(sampling: Sampling, input_ids: Tensor, spec: HostSpec) -> tuple[Sampling, int]:
    """Return the settings with defaults filled in and the number of blocks.

    Raises:
        InputError: When a number is out of range, lengths and steps do not fit, or a prompt cannot be completed.
    """
    block_length, steps, blocks = check_blocks(sampling.gen_length, sampling.block_length, sampling.steps)
    check_prompt(input_ids, spec, sampling.gen_length)
    check_number("temperature", sampling.temperature, low=0)
    check_number("early_stop", sampling.early_stop, low=0, integer=True)
    check_number("refresh_every", sampling.refresh_every, low=0, integer=True)
    check_number("sliding", sampling.sliding, low=0, integer=True)
    check_number("eps", sampling.eps, low=0, high=1, low_open=True, high_open=True)
    check_ends(spec, sampling.early_stop)
    order = default_order(spec) if sampling.order is None else sampling.order
    check_order(order)
    fields = vars(sampling) | {"block_length": block_length, "steps": steps, "order": order}
    return Sampling(**fields), blocks


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
