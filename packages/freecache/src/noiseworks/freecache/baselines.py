"""What FreeCache and Guided Diffusion are compared with: no cache, parallel decoding by confidence, a threshold."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.discrete import select_threshold
from noiseworks.freecache.cache import FreeCache, Recompute
from noiseworks.freecache.decoding import (
    Decoded,
    Rows,
    Sampling,
    Stats,
    checked,
    decode_blocks,
    window_start,
)
from noiseworks.kits.masked_lm import HostSpec, confidence
from torch import Tensor, nn


def full_recompute_generate(
    model: nn.Module,
    input_ids: Tensor,
    sampling: Sampling,
    *,
    attention_mask: Tensor | None = None,
    spec: HostSpec | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
) -> Decoded:
    """Decode as `freecache_generate` does, with the host's own forward on the whole canvas at every step.

    Fewer steps than tokens make it confidence-parallel decoding: the surest tokens of a step are revealed
    together.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        sampling: Lengths, steps, order and draws.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        spec: The host's contract; by default detected.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead.

    Raises:
        InputError: When lengths and steps do not fit, or a prompt cannot be completed.
    """
    cache = Recompute(model, spec)
    return decode_blocks(cache, input_ids, attention_mask, sampling, generator=generator, seeds=seeds)


@torch.no_grad()
def threshold_generate(
    model: nn.Module,
    input_ids: Tensor,
    sampling: Sampling,
    *,
    threshold: float = 0.9,
    attention_mask: Tensor | None = None,
    cache: FreeCache | None = None,
    spec: HostSpec | None = None,
) -> Decoded:
    """Decode block by block; a step reveals all tokens surer than a threshold, and the surest in any case.

    The confidence-aware parallel decoding of Fast-dLLM (arXiv 2505.22618), greedy; rows of a batch wait for each
    other at the end of a block.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        sampling: Lengths, early stop and sliding window; steps, order and draws are not used.
        threshold: Of the probability, in [0, 1].
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        cache: A FreeCache to decode with; by default everything is computed anew.
        spec: The host's contract; by default detected.

    Raises:
        InputError: When lengths do not fit, or a prompt cannot be completed.
    """
    began = time.perf_counter()
    check_number("threshold", threshold, low=0, high=1)
    cache = Recompute(model, spec) if cache is None else cache
    sampling, blocks = checked(replace(sampling, steps=None), input_ids, cache.spec)
    prompt, width = input_ids.shape[1], sampling.block_length
    rows, stats = Rows.begin(cache, input_ids, attention_mask, sampling.gen_length), Stats()
    for block in range(blocks):
        low = prompt + block * width
        start = window_start(low, cache.spec, sampling)
        while rows.active and bool((rows.tokens[:, low : low + width] == cache.spec.mask_id).any()):
            logits = cache.forward(rows.tokens, start if stats.steps else 0, positions=(low, low + width))
            if stats.steps == 0:
                cache.commit(start)
            here = rows.tokens[:, low : low + width]
            drawn = logits.argmax(dim=-1)
            sure = confidence(logits, drawn, "top1")
            chosen = select_threshold(sure, here == cache.spec.mask_id, threshold)
            rows.tokens[:, low : low + width] = torch.where(chosen, drawn, here)
            stats.steps += 1
            if sampling.early_stop:
                rows.stop_ended(cache, sampling.early_stop)
        cache.check_finite(rows.tokens)
        if not rows.active:
            break
        following = window_start(low + width, cache.spec, sampling)
        if block < blocks - 1 and following > start:
            cache.finish(rows.tokens, following)
    stats.calls, stats.rows, stats.memory_bytes = cache.calls, cache.rows, cache.memory_bytes()
    stats.seconds = {"total": time.perf_counter() - began}
    return Decoded(rows.snapshot(), stats)


@torch.no_grad()
def guide_generate(
    guide: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    gen_length: int,
    spec: HostSpec,
) -> Decoded:
    """Let the guide answer alone, greedily, with its own cache: is the speed-up more than the guide's own text?

    Args:
        guide: A causal language model with the masked model's vocabulary.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        gen_length: Tokens to generate.
        spec: The masked model's contract.
    """
    began = time.perf_counter()
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    sequences = guide.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=gen_length,
        do_sample=False,
        eos_token_id=list(spec.eos_ids) or None,
        pad_token_id=spec.eos_ids[0] if spec.eos_ids else spec.pad_id,
    )
    missing = input_ids.shape[1] + gen_length - sequences.shape[1]
    if missing:
        ends = sequences.new_full((len(sequences), missing), spec.eos_ids[0])
        sequences = torch.cat([sequences, ends], dim=1)
    steps = gen_length - missing
    return Decoded(sequences, Stats(steps=steps, seconds={"total": time.perf_counter() - began}))
