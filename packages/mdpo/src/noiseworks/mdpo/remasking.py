"""Running Confidence Remasking (He et al. 2025) and the standard sampler it replaces, batched.

Both reveal k_t tokens at step t of a block and cost the same network calls. The standard sampler freezes what
it has revealed; RCR keeps the confidence of every predicted position and masks the globally least sure ones
again, so that later context can revise them, also in earlier blocks.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from noiseworks.core import noise
from noiseworks.core.discrete import select_top
from noiseworks.core.kernels.gumbel import gumbel_argmax_conf
from noiseworks.kits.masked_lm import (
    HostSpec,
    aligned_logits,
    check_logits,
    check_prompt,
    detect_host,
    filter_logits,
    row_keys,
)
from noiseworks.mdpo.options import Decoding, Track
from noiseworks.mdpo.trace import Trace
from torch import Tensor, nn


@dataclass(frozen=True)
class GenerationOutput:
    """What `rcr_generate` returns.

    Attributes:
        sequences: Prompt and completion, int64 [B, P + L].
        calls: Network calls (each for the whole batch).
        trace: What every step read and predicted, when it was recorded.
    """

    sequences: Tensor
    calls: int
    trace: Trace | None


class Prediction(NamedTuple):
    """The full prediction at the masked positions, all [B, n].

    Attributes:
        tokens: x̂, ids.
        probability: c, the tempered and filtered probability of the token, float32.
        score: s, what positions are ordered by, float32.
    """

    tokens: Tensor
    probability: Tensor
    score: Tensor


def predict(logits: Tensor, decoding: Decoding, keys: Tensor, call: int) -> Prediction:
    """Return the sampled tokens with their probabilities and scores.

    Args:
        logits: Aligned logits at the masked positions, [B, n, V]; −inf at the mask id.
        decoding: Temperature, filters and confidence.
        keys: One random key a position, int64 [B, n].
        call: Number of this call, so that every step draws anew.
    """
    rows, vocabulary = logits.reshape(-1, logits.shape[-1]).float(), logits.shape[-1]
    if decoding.temperature > 0:
        rows = rows / decoding.temperature
    rows = filter_logits(rows, decoding.top_p, decoding.top_k)
    counter = call * (-(-vocabulary // 4) + 1)
    margin = entropy = None
    if decoding.temperature > 0:
        drawn = gumbel_argmax_conf(rows, keys.reshape(-1), counter0=counter)
        tokens, probability, margin, entropy = drawn.ids, drawn.p_ids, drawn.margin, drawn.entropy
    else:
        best, tokens = rows.max(dim=-1)
        probability = (best - rows.logsumexp(dim=-1)).exp()
    score = probability
    if decoding.confidence == "random":
        score = noise.uniform(keys.reshape(-1), (1,), counter0=counter + -(-vocabulary // 4)).squeeze(-1)
    elif decoding.confidence == "entropy":
        score = -(torch.special.entr(rows.softmax(dim=-1)).sum(-1) if entropy is None else entropy)
    elif decoding.confidence == "topk_margin":
        if margin is None:
            top = rows.log_softmax(dim=-1).topk(2, dim=-1).values.exp()
            margin = top[:, 0] - top[:, 1]
        score = margin
    return Prediction(*(value.reshape(keys.shape) for value in (tokens, probability, score)))


def update_running(running: Tensor, score: Tensor, track: Track) -> Tensor:
    """Return R after new predictions; +inf stands for a position that was never predicted.

    Args:
        running: R at the predicted positions.
        score: Their new scores s.
        track: `latest` replaces, `max` and `min` keep the larger or smaller one.
    """
    if track == "latest":
        return score
    unset = running == math.inf
    return torch.where(
        unset, score, torch.maximum(running, score) if track == "max" else running.minimum(score)
    )


def running_confidence_remask(tokens: Tensor, running: Tensor, count: int, mask_id: int) -> Tensor:
    """Return tokens in which the `count` least sure predicted positions are masked again.

    Args:
        tokens: Generated part, int64 [B, L].
        running: R, float32 [B, L]; +inf where nothing was predicted yet, which is never masked.
        count: m = Σ_{u>t} k_u.
        mask_id: Id of [MASK].
    """
    predicted = running != math.inf
    # Keeping the best with ties to the lower index makes equal scores act as in the standard sampler.
    kept = select_top(running, predicted, predicted.sum(dim=1) - count)
    return tokens.masked_fill(predicted & ~kept, mask_id)


class _Canvas:
    """The state of a batch while it is decoded: tokens, running scores, probabilities and the record."""

    def __init__(self, prompt: Tensor, decoding: Decoding, mask_id: int, record: bool) -> None:
        shape = (len(prompt), decoding.gen_length)
        self.prompt, self.decoding, self.mask_id = prompt, decoding, mask_id
        self.tokens = torch.full(shape, mask_id, dtype=torch.long, device=prompt.device)
        self.running = torch.full(shape, math.inf, dtype=torch.float32, device=prompt.device)
        self.weights = torch.zeros(shape, dtype=torch.float32, device=prompt.device)
        self.record = [] if record else None

    def masked(self, end: int) -> Tensor:
        """Return the masked positions before `end`, int64 [B, n]: every row has the same number."""
        return (self.tokens[:, :end] == self.mask_id).nonzero()[:, 1].reshape(len(self.tokens), -1)

    def step(self, positions: Tensor, found: Prediction, end: int, now: int, later: int) -> None:
        """Apply one prediction: reveal `now` tokens before `end`, `later` stay masked there."""
        eligible = positions < end
        score = found.score.masked_fill(~eligible, -math.inf)
        before, full = self.tokens, self.tokens.scatter(1, positions, found.tokens)
        if self.decoding.remask == "rcr":
            old = self.running.gather(1, positions)
            new = torch.where(eligible, update_running(old, found.score, self.decoding.track), old)
            self.running = self.running.scatter(1, positions, new)
            self.weights.scatter_(1, positions, torch.where(eligible, found.probability, 0.0))
            shown = torch.where(self.running == math.inf, before, full)
            self.tokens = running_confidence_remask(shown, self.running, later, self.mask_id)
        else:
            self.weights.scatter_(1, positions, found.probability)
            revealed = select_top(score, eligible, now)
            chosen = torch.where(revealed, found.tokens, self.mask_id)
            self.tokens = self.tokens.scatter(1, positions, chosen)
        if self.record is not None:
            self.record.append((before, full, self.weights.clone()))

    def skip(self) -> None:
        """Record a step that has nothing to predict."""
        if self.record is not None:
            self.record.append((self.tokens, self.tokens, self.weights.clone()))

    def trace(self) -> Trace | None:
        """Return the record on the CPU, if there is one."""
        if self.record is None:
            return None
        inputs, predictions, scores = (torch.stack(parts).cpu() for parts in zip(*self.record, strict=True))
        return Trace(inputs.int(), predictions.int(), scores.half(), self.tokens.cpu().int(), self.mask_id)


@torch.no_grad()
def rcr_generate(
    model: nn.Module,
    input_ids: Tensor,
    decoding: Decoding,
    *,
    attention_mask: Tensor | None = None,
    spec: HostSpec | None = None,
    generator: torch.Generator | None = None,
    seeds: Sequence[int] | None = None,
    record: bool = False,
) -> GenerationOutput:
    """Complete prompts by masked diffusion, with RCR or the standard sampler.

    Args:
        model: A LLaDA- or Dream-style model.
        input_ids: Prompts, int64 [B, P], left padded where they differ in length.
        decoding: How to decode.
        attention_mask: 1 for real tokens, 0 for padding, [B, P].
        spec: The host's contract; by default detected from the model.
        generator: Where rows' seeds are drawn from when tokens or order are random.
        seeds: One seed a row instead: a row then is the same in every batch.
        record: Whether to keep inputs, predictions and confidences of all steps.

    Returns:
        Sequences, number of network calls, and the trace.

    Raises:
        InputError: When settings do not fit together or a prompt cannot be decoded behind.
        NonFiniteError: When the model gives NaN or infinity.
    """
    spec = detect_host(model) if spec is None else spec
    check_prompt(input_ids, spec, decoding.gen_length)
    if decoding.steps > decoding.gen_length:
        warnings.warn(
            f"{decoding.steps} steps for {decoding.gen_length} tokens: some reveal none", stacklevel=2
        )
    prompt_length, counts = input_ids.shape[1], decoding.reveal_counts()
    keys = row_keys(len(input_ids), decoding.gen_length, generator, seeds, input_ids.device)
    canvas = _Canvas(input_ids, decoding, spec.mask_id, record)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones_like(canvas.tokens).to(attention_mask)], dim=1)
    call = 0
    for block in range(decoding.blocks):
        end = (block + 1) * decoding.block_length
        for step, now in enumerate(counts):
            # Beyond the block only the record needs predictions.
            positions = canvas.masked(decoding.gen_length if record else end)
            if positions.shape[1] == 0:
                canvas.skip()
                continue
            ids = torch.cat([input_ids, canvas.tokens], dim=1)
            logits = aligned_logits(
                model, ids, attention_mask, spec=spec, positions=positions + prompt_length
            )
            check_logits(logits, call)
            found = predict(logits, decoding, keys.gather(1, positions), call)
            canvas.step(positions, found, end, now, sum(counts[step + 1 :]))
            call += 1
    return GenerationOutput(torch.cat([input_ids, canvas.tokens], dim=1), call, canvas.trace())
