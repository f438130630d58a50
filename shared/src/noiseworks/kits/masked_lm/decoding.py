"""LLaDA's and Dream's own samplers: the baselines that methods are compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from noiseworks.core import noise
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.discrete import select_top
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm.hosts import (
    HostSpec,
    aligned_logits,
    check_logits,
    check_prompt,
    detect_host,
)
from noiseworks.kits.masked_lm.sampling import draw_tokens, filter_logits, row_keys
from noiseworks.kits.masked_lm.schedules import confidence, dream_counts, transfer_schedule
from torch import Tensor, nn

DREAM_ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
_DREAM_SCORE = {"maskgit_plus": "top1", "topk_margin": "margin", "entropy": "neg_entropy"}


@dataclass
class GenerationOutput:
    """What a sampler returns.

    Attributes:
        sequences: Prompts and completions, int64 [B, P + G].
        calls: Network calls on the whole batch.
        history: Canvases after each step, int64 [B, P + G], when asked for.
    """

    sequences: Tensor
    calls: int
    history: list[Tensor] = field(default_factory=list)


def _canvas(input_ids: Tensor, attention_mask: Tensor | None, gen_length: int, spec: HostSpec):
    masks = input_ids.new_full((len(input_ids), gen_length), spec.mask_id)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones_like(masks).to(attention_mask)], dim=1)
    return torch.cat([input_ids, masks], dim=1), attention_mask


@torch.no_grad()
def llada_generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    gen_length: int = 128,
    block_length: int | None = None,
    steps: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    eos_off: bool = False,
    eos_last: bool = False,
    spec: HostSpec | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> GenerationOutput:
    """Complete prompts block by block, the surest tokens first (Nie et al. 2025, LLaDA).

    Args:
        model: The host.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        gen_length: Tokens to generate, a multiple of `block_length`.
        block_length: Tokens a block; by default one block.
        steps: Network calls, a multiple of the number of blocks; by default one a token.
        temperature: Of the draws; 0 takes the likeliest token.
        cfg_scale: Guidance w against the prompt replaced by masks: u + (w + 1)(c - u); 0 for none.
        remasking: `low_confidence` reveals the surest tokens first, by the untempered probability; `random`
            any.
        eos_off: Whether ends of text are never drawn.
        eos_last: Whether ends of text are revealed last.
        spec: The host's contract; by default detected.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead: a row then is the same in every batch.
        record: Whether to keep the canvas of every step.

    Raises:
        InputError: When lengths and steps do not fit, or a prompt cannot be completed.
        NonFiniteError: When the model gives NaN or infinity.
    """
    spec = detect_host(model) if spec is None else spec
    check_prompt(input_ids, spec, gen_length)
    check_choice("remasking", remasking, ("low_confidence", "random"))
    check_number("cfg_scale", cfg_scale, low=0)
    block_length, steps, blocks = check_blocks(gen_length, block_length, steps)
    tokens, mask = _canvas(input_ids, attention_mask, gen_length, spec)
    prompt, start = tokens != spec.mask_id, input_ids.shape[1]
    keys = row_keys(len(tokens), gen_length, generator, seeds, tokens.device)
    output = GenerationOutput(tokens, 0)
    for block in range(blocks):
        low = start + block * block_length
        positions = torch.arange(low, low + block_length, device=tokens.device).expand(len(tokens), -1)
        block_keys = keys[:, low - start : low - start + block_length]
        for count in transfer_schedule(block_length, steps // blocks, "even"):
            logits = aligned_logits(model, tokens, mask, spec=spec, positions=positions)
            check_logits(logits, output.calls)
            if cfg_scale > 0:
                blank = tokens.masked_fill(prompt, spec.mask_id)
                free = aligned_logits(model, blank, mask, spec=spec, positions=positions)
                # -inf stays -inf: the difference of two is NaN.
                logits = torch.where(logits.isinf(), logits, free + (cfg_scale + 1) * (logits - free))
            if eos_off:
                logits[..., list(spec.eos_ids)] = -torch.inf
            drawn = draw_tokens(logits, block_keys, temperature=temperature, call=output.calls)
            scores = _order(logits, drawn, remasking, block_keys, output.calls)
            if eos_last:
                ends = torch.isin(drawn, torch.tensor(spec.eos_ids, device=drawn.device))
                scores = scores.masked_fill(ends, -torch.inf)
            here = tokens[:, low : low + block_length]
            chosen = select_top(scores, here == spec.mask_id, count)
            tokens = tokens.clone()
            tokens[:, low : low + block_length] = torch.where(chosen, drawn, here)
            output.calls += 2 if cfg_scale > 0 else 1
            if record:
                output.history.append(tokens)
    output.sequences = tokens
    return output


def _order(logits: Tensor, drawn: Tensor, remasking: str, keys: Tensor, call: int) -> Tensor:
    if remasking == "low_confidence":
        return confidence(logits, drawn, "top1")
    # A stream of its own, beyond the counters that draws of tokens use.
    uniform = noise.uniform(keys.reshape(-1), (1,), counter0=2**40 + call)
    return uniform.reshape(keys.shape)


def check_blocks(gen_length: int, block_length: int | None, steps: int | None) -> tuple[int, int, int]:
    """Return block length, steps and number of blocks, with the defaults filled in.

    Args:
        gen_length: Tokens to generate.
        block_length: Tokens a block, by default `gen_length`.
        steps: Network calls in all, by default `gen_length`.

    Raises:
        InputError: Unless `gen_length` is a multiple of `block_length` and `steps` of the number of blocks.
    """
    check_number("gen_length", gen_length, low=1, integer=True)
    block_length = gen_length if block_length is None else block_length
    steps = gen_length if steps is None else steps
    check_number("block_length", block_length, low=1, integer=True)
    check_number("steps", steps, low=1, integer=True)
    if gen_length % block_length:
        raise InputError(f"gen_length {gen_length} must be a multiple of block_length {block_length}")
    blocks = gen_length // block_length
    if steps % blocks:
        raise InputError(f"steps {steps} must be a multiple of the {blocks} blocks")
    return block_length, steps, blocks


TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]
LogitsHook = Callable[[int, Tensor, Tensor], Tensor]


@torch.no_grad()
def dream_generate(
    model: nn.Module,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 128,
    steps: int = 512,
    eps: float = 1e-3,
    alg: str = "origin",
    alg_temp: float = 0.0,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    spec: HostSpec | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
    tokens_hook: TokensHook | None = None,
    logits_hook: LogitsHook | None = None,
) -> GenerationOutput:
    """Complete prompts on one canvas without blocks (Ye et al. 2025, Dream).

    Args:
        model: The host.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        attention_mask: 1 for tokens and 0 for padding, [B, P].
        max_new_tokens: Tokens to generate.
        steps: Network calls.
        eps: Last time.
        alg: `origin` reveals in random order; `maskgit_plus`, `topk_margin` and `entropy` reveal the surest
            first, by the tempered and filtered probabilities.
        alg_temp: Above 0 positions are drawn without replacement from softmax(score / alg_temp).
        temperature: Of the draws; 0 takes the likeliest token.
        top_p: Mass of the nucleus.
        top_k: Tokens kept.
        spec: The host's contract; by default detected.
        generator: Where the rows' seeds are drawn from.
        seeds: One seed a row instead: a row then is the same in every batch.
        record: Whether to keep the canvas of every step.
        tokens_hook: `(step, tokens, logits) -> tokens`, called with (None, tokens, None) before the first step
            and after every step.
        logits_hook: `(step, tokens, logits) -> logits`, called on the aligned logits [B, G, V].

    Raises:
        InputError: When a number is out of range or a prompt cannot be completed.
        NonFiniteError: When the model gives NaN or infinity.
    """
    spec = detect_host(model) if spec is None else spec
    check_prompt(input_ids, spec, max_new_tokens)
    check_choice("alg", alg, DREAM_ALGORITHMS)
    check_number("alg_temp", alg_temp, low=0)
    check_number("steps", steps, low=1, integer=True)
    tokens, mask = _canvas(input_ids, attention_mask, max_new_tokens, spec)
    start = input_ids.shape[1]
    positions = torch.arange(start, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
    keys = row_keys(len(tokens), max_new_tokens, generator, seeds, tokens.device)
    times, output = torch.linspace(1, eps, steps + 1), GenerationOutput(tokens, 0)
    counts = dream_counts(max_new_tokens, steps, eps)
    if tokens_hook is not None:
        tokens = tokens_hook(None, tokens, None)
    for step in range(steps):
        logits = aligned_logits(model, tokens, mask, spec=spec, positions=positions)
        check_logits(logits, step)
        if logits_hook is not None:
            logits = logits_hook(step, tokens, logits)
        shaped = filter_logits(logits / temperature if temperature > 0 else logits, top_p, top_k)
        drawn = draw_tokens(shaped, keys, temperature=1.0 if temperature > 0 else 0.0, call=step)
        here = tokens[:, start:]
        masked = here == spec.mask_id
        if alg == "origin":
            last = step == steps - 1
            share = 1.0 if last else float(1 - times[step + 1] / times[step])
            chosen = masked & (_uniform(keys, step) < share)
        else:
            scores = confidence(shaped, drawn, _DREAM_SCORE[alg])
            if alg_temp > 0:
                # Gumbel-top-k: a draw without replacement from softmax(score / alg_temp).
                scores = scores / alg_temp - torch.log(-torch.log(_uniform(keys, step)))
            chosen = select_top(scores, masked, counts[step])
        tokens = torch.cat([tokens[:, :start], torch.where(chosen, drawn, here)], dim=1)
        output.calls += 1
        if tokens_hook is not None:
            tokens = tokens_hook(step, tokens, logits)
        if record:
            output.history.append(tokens)
    output.sequences = tokens
    return output


def _uniform(keys: Tensor, call: int) -> Tensor:
    drawn = noise.uniform(keys.reshape(-1), (1,), counter0=2**40 + call).reshape(keys.shape)
    return drawn.clamp(min=2.0**-32)
