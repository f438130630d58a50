"""Guided Diffusion: the masked model drafts, an autoregressive guide decides how many drafts are written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache.cache import FreeCache, Recompute
from noiseworks.freecache.decoding import Decoded, Rows, Stats
from noiseworks.freecache.guidance import accepts, leading_run
from noiseworks.freecache.guide import CHUNK, Guide
from noiseworks.freecache.options import Caching, Guidance, Sampling
from noiseworks.freecache.orders import check_ends, ended, fill, uniform
from noiseworks.freecache.tokens import guide_prompts, token_map
from noiseworks.freecache.windows import next_window
from noiseworks.kits.masked_lm import HostSpec, check_prompt, detect_host, draw_tokens, row_keys
from torch import Tensor, nn


@dataclass(frozen=True)
class Proposal:
    """One step's drafts and verdicts.

    Attributes:
        positions: Positions of the candidates on the canvas, int64 [b, n].
        inside: Whether a candidate lies on the canvas, bool [b, n].
        masked: Whether it is a mask, bool [b, n].
        candidates: Drafts at masks, else what stands there, int64 [b, n].
        flags: Accept flags, bool [b, n]; False from the first chunk that was not compared.
        replacements: The guide's own token at each position, int64 [b, n] (`speculative`).
    """

    positions: Tensor
    inside: Tensor
    masked: Tensor
    candidates: Tensor
    flags: Tensor
    replacements: Tensor


class GuidedDiffusion:
    """Decoding of a masked model that an autoregressive guide speeds up, with or without FreeCache windows.

    One step drafts every mask in reach by the likeliest token, and lets the guide score all drafts in one
    forward, each given the drafts before it. The run of accepted drafts at the start is written, at least one
    draft in any case. The written tokens are the masked model's; the guide only approves.

    Args:
        model: A LLaDA or Dream model in evaluation mode.
        guide: A transformers causal language model, smaller than the model.
        guidance: When a draft is accepted, and where windows start.
        caching: Whether windows are used at all, and the width of sliding ones, which then is at least `verify`.
            Tokens are frozen when they were computed once with their final values; the commit rule plays no part.
        tokenizers: Tokenizers of the model and of the guide, to compare vocabularies; None when the ids are known
            to agree.
        spec: The model's contract; by default detected.

    Raises:
        InputError: When settings do not fit each other, or the guide has another vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        guidance: Guidance = Guidance(),
        caching: Caching = Caching(),
        *,
        tokenizers: tuple[Any, Any] | None = None,
        spec: HostSpec | None = None,
    ) -> None:
        self.spec = detect_host(model) if spec is None else spec
        self.guidance, self.caching, self.tokenizers = guidance, caching, tokenizers
        self.window = guidance.windows if caching.cache else None
        sliding, verify = caching.sliding, guidance.verify or 1
        if self.window == "sliding" and sliding is not None and sliding < verify:
            raise InputError(f"sliding windows must reach all of the {verify} verified drafts, got {sliding}")
        tokens = token_map(tokenizers, self.spec, guide, allow_retokenize=guidance.allow_retokenize)
        if tokens is not None and guidance.mode == "speculative":
            raise InputError(
                "mode 'speculative' writes the guide's tokens; it needs a guide of one vocabulary"
            )
        self.guide = Guide(guide, tokens)
        self.cache = FreeCache(model, self.spec) if self.window else Recompute(model, self.spec)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        sampling: Sampling = Sampling(),
        *,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
        record: bool = False,
    ) -> Decoded:
        """Complete prompts; each row goes at its own pace, finished rows leave the batch.

        Rows share one window, which starts where the slowest row needs it: but for windows `prompt`, or without a
        cache, a row's text may depend on the rows beside it.

        Args:
            input_ids: Prompts, int64 [B, P], left padded where they differ in length.
            sampling: Lengths, and whether a written end of text ends a row. Drafts are the likeliest tokens, and
                the guide decides how many are written.
            attention_mask: 1 for tokens and 0 for padding, [B, P].
            generator: Where the rows' seeds are drawn from (strategy `stochastic`).
            seeds: One seed a row instead.
            record: Whether to keep the canvas of every step.

        Raises:
            InputError: When a prompt cannot be completed, or when anything but lengths and the early stop was chosen.
            NonFiniteError: When the model gives NaN or infinity.
        """
        self._check(sampling)
        began = time.perf_counter()
        check_prompt(input_ids, self.spec, sampling.gen_length)
        prompt, gen_length = input_ids.shape[1], sampling.gen_length
        sliding = max(self.caching.width(sampling.block_length), self.guidance.verify or 1)
        rows = Rows.begin(self.cache, input_ids, attention_mask, gen_length)
        extra = self._reset_guide(input_ids, attention_mask, gen_length)
        keys = row_keys(len(input_ids), gen_length, generator, seeds, input_ids.device)
        clean = input_ids.new_full((len(input_ids),), prompt)
        zeros = [0] * len(input_ids)
        stats = Stats(seconds={"host": 0.0, "guide": 0.0}, written=zeros, row_steps=[*zeros])
        output = Decoded(rows.sequences, stats)
        start, end = 0, rows.tokens.shape[1]
        while rows.active:
            proposal = self._propose(rows, clean, (start, end), keys, stats)
            # Computed with their final tokens, and never beyond the last clean one.
            self.cache.commit(int(clean.min()))
            self._write(rows, proposal, stats)
            clean = prompt + (rows.tokens[:, prompt:] != self.spec.mask_id).long().cumprod(dim=1).sum(dim=1)
            self.guide.crop(clean - 1 + extra)
            stats.steps += 1
            if record:
                output.history.append(rows.snapshot())
            kept = self._drop_finished(rows, clean, sampling.early_stop > 0)
            clean, keys = clean[kept], keys[kept]
            if rows.active:
                start, end = next_window(
                    self.window,
                    (int(clean.min()), int(clean.max())),
                    self.cache.committed,
                    prompt=prompt,
                    length=rows.tokens.shape[1],
                    block_length=sampling.block_length,
                    shift=self.spec.shift,
                    sliding=sliding,
                )
        output.sequences = rows.snapshot()
        stats.calls, stats.rows, stats.guide_calls = self.cache.calls, self.cache.rows, self.guide.calls
        stats.memory_bytes = self.cache.memory_bytes()
        stats.seconds["total"] = time.perf_counter() - began
        return output

    def _check(self, sampling: Sampling) -> None:
        """Refuse what has no effect under guidance."""
        plain = Sampling(sampling.gen_length, sampling.block_length)
        for name in ("reveal", "threshold", "temperature", "top_p", "top_k"):
            if getattr(sampling, name) != getattr(plain, name):
                raise InputError(
                    f"a guide decides what is written, and drafts are the likeliest tokens; leave out {name}"
                )
        check_ends(self.spec, sampling.early_stop)

    def _reset_guide(self, input_ids: Tensor, attention_mask: Tensor | None, gen_length: int) -> int:
        """Cache the prompts; return how many more columns they take in the guide's tokens."""
        if self.guide.map is None:
            self.guide.reset(input_ids, attention_mask, input_ids.shape[1] + gen_length)
            return 0
        prompts, mask = guide_prompts(input_ids, attention_mask, self.tokenizers)
        self.guide.reset(prompts, mask, prompts.shape[1] + gen_length)
        return prompts.shape[1] - input_ids.shape[1]

    def _propose(
        self, rows: Rows, clean: Tensor, window: tuple[int, int], keys: Tensor, stats: Stats
    ) -> Proposal:
        """Draft the next masks of every row and let the guide score them."""
        start, end = window
        left = end - int(clean.min())
        count = left if self.guidance.verify is None else min(self.guidance.verify, left)
        positions = clean.unsqueeze(1) + torch.arange(count, device=clean.device)
        inside = positions < end
        positions = positions.clamp(max=end - 1)
        began = time.perf_counter()
        logits = self.cache.forward(rows.tokens, start, end, positions=positions)
        drafts = logits.argmax(dim=-1)
        self.cache.check_finite(rows.tokens)
        here = rows.tokens.gather(1, positions)
        masked = (here == self.spec.mask_id) & inside
        candidates = torch.where(masked, drafts, here)
        middle = time.perf_counter()
        flags, replacements = self._compare(rows, clean, candidates, inside, keys, stats.steps)
        stats.seconds["host"] += middle - began
        stats.seconds["guide"] += time.perf_counter() - middle
        stats.drafted += int(masked.sum())
        return Proposal(positions, inside, masked, candidates, flags & inside, replacements)

    def _compare(
        self, rows: Rows, clean: Tensor, candidates: Tensor, inside: Tensor, keys: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return accept flags and the guide's own tokens; chunk by chunk while some row accepts all."""
        last = rows.tokens.gather(1, (clean - 1).unsqueeze(1))
        fed = torch.cat([last, candidates[:, :-1]], dim=1)
        flags = torch.zeros_like(candidates, dtype=torch.bool)
        replacements = candidates.clone()
        place = (clean - rows.prompt).unsqueeze(1) + torch.arange(fed.shape[1], device=fed.device)
        mine = keys.gather(1, place.clamp(max=keys.shape[1] - 1))
        for low in range(0, fed.shape[1], CHUNK):
            chunk = slice(low, low + CHUNK)
            logits = self.guide.score(fed[:, chunk])
            drafts, uniforms = candidates[:, chunk], None
            if self.guidance.strategy == "stochastic":
                uniforms = uniform(mine[:, chunk], step)
            flags[:, chunk] = accepts(self.guidance, logits, drafts, uniforms)
            if self.guidance.mode == "speculative":
                replacements[:, chunk] = self._own_tokens(logits, drafts, mine[:, chunk], step)
            # Another copy to the host only when there is another chunk.
            if low + CHUNK < fed.shape[1] and not bool((flags | ~inside)[:, chunk].all(dim=1).any()):
                break
        return flags, replacements

    def _own_tokens(self, logits: Tensor, drafts: Tensor, keys: Tensor, step: int) -> Tensor:
        """Return the guide's token where a draft is refused: its likeliest, or a draw without the draft."""
        size = logits.shape[-1]
        words = torch.arange(size, device=logits.device)
        limit = size if self.spec.vocab_limit is None else self.spec.vocab_limit
        own = logits.float().masked_fill((words >= limit) | (words == self.spec.mask_id), -torch.inf)
        if self.guidance.strategy != "stochastic":
            return own.argmax(dim=-1)
        return draw_tokens(
            own.scatter(-1, drafts.unsqueeze(-1), -torch.inf), keys, temperature=1.0, call=step
        )

    def _drop_finished(self, rows: Rows, clean: Tensor, early_stop: bool) -> list[int]:
        """Take rows without masks, or with a written end of text, out of the batch; return those that stay."""
        answers = rows.tokens[:, rows.prompt :]
        done, cut = clean == rows.tokens.shape[1], torch.full_like(clean, answers.shape[1])
        if early_stop:
            over, after = ended(answers, self.spec, 1, rightmost=False)
            done, cut = done | over, torch.where(over, after, cut)
        if not bool(done.any()):
            return list(range(len(rows.active)))
        rows.tokens[:, rows.prompt :] = fill(answers, done, cut, self.spec)
        kept = rows.drop(self.cache, done)
        if kept:
            self.guide.keep(kept)
        return kept

    def _write(self, rows: Rows, proposal: Proposal, stats: Stats) -> None:
        """Write accepted drafts, and at least the first one."""
        run = leading_run(proposal.flags)
        count = run.clamp(min=1)
        place = torch.arange(proposal.flags.shape[1], device=run.device)
        tokens = proposal.candidates
        if self.guidance.mode == "speculative":
            rejected = (place == run.unsqueeze(1)) & proposal.inside
            tokens, count = torch.where(rejected, proposal.replacements, tokens), run + 1
        written = (place < count.unsqueeze(1)) & proposal.masked
        compared = run + (run < proposal.inside.sum(dim=1)).long()
        rows.tokens = _put(rows.tokens, proposal.positions, tokens, written)
        for row, number in zip(rows.active, written.sum(dim=1).tolist(), strict=True):
            stats.written[row] += number
            stats.row_steps[row] += 1
        stats.compared += int(compared.sum())
        stats.accepted += int(run.sum())
        stats.accepted_per_step.append(float(run.float().mean()))


def _put(canvas: Tensor, positions: Tensor, tokens: Tensor, written: Tensor) -> Tensor:
    """Return the canvas with `tokens` at `positions` where `written`; other positions may repeat."""
    length = canvas.shape[1]
    # What is not written goes to a column beyond the canvas.
    wide = torch.cat([canvas, canvas[:, :1]], dim=1)
    return wide.scatter(1, torch.where(written, positions, length), tokens)[:, :length]
