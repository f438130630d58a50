"""A masked model and its guide by name, and decodings of prompts for the commands and the claim."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.memory import peak_mib
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware
from noiseworks.core.timing import in_turns
from noiseworks.freecache.data import Question, encode, random_prompts, texts
from noiseworks.freecache.decoding import Decoded, freecache_generate
from noiseworks.freecache.guided import GuidedDiffusion
from noiseworks.freecache.options import Caching, Guidance, Sampling, Timing
from noiseworks.kits.masked_lm import HostSpec, load_host, load_weights
from torch import Tensor, nn


@dataclass(frozen=True)
class Loaded:
    """A masked model with what belongs to it, and a guide where one was named."""

    model: nn.Module
    tokenizer: Any
    spec: HostSpec
    guide: nn.Module | None
    guide_tokenizer: Any
    device: torch.device

    def guided(self, guidance: Guidance = Guidance(), caching: Caching = Caching()) -> GuidedDiffusion:
        """Return guided decoding with the loaded guide."""
        tokenizers = (self.tokenizer, self.guide_tokenizer)
        return GuidedDiffusion(
            self.model, self.guide, guidance, caching, tokenizers=tokenizers, spec=self.spec
        )


def load(model: str, guide: str | None, hardware: Hardware) -> Loaded:
    """Load a masked model and a guide.

    Args:
        model: A directory, a hub id or testbed:<name>.
        guide: The same, or None.
        hardware: Where both run, and in which type.

    Raises:
        InputError: When a model cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device, dtype = hardware.torch_device(), hardware.torch_dtype()
    found = guide_tokenizer = None
    if guide is not None:
        source = resolve_model(guide)
        try:
            found = load_weights(AutoModelForCausalLM, source, dtype=dtype).to(device)
            guide_tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot load the guide {guide}: {first_line(error)}") from error
    host, tokenizer, spec = load_host(model, dtype=dtype)
    return Loaded(host.to(device), tokenizer, spec, found, guide_tokenizer, device)


def complete(
    loaded: Loaded,
    ids: Tensor,
    mask: Tensor,
    sampling: Sampling,
    caching: Caching,
    guidance: Guidance | None = None,
    *,
    seed: int = 0,
) -> Decoded:
    """Complete prompts [B, P], guided where there is a `guidance`; row i draws with seed + i."""
    seeds = [seed + row for row in range(len(ids))]
    if guidance is not None:
        guided = loaded.guided(guidance, caching)
        return guided.generate(ids, sampling, attention_mask=mask, seeds=seeds)
    return freecache_generate(
        loaded.model, ids, sampling, caching, attention_mask=mask, spec=loaded.spec, seeds=seeds
    )


def count_right(
    loaded: Loaded, asked: Sequence[Question], batch_size: int, chat: bool, *settings: Any, seed: int = 0
) -> dict[str, Any]:
    """Return how many questions are answered, and the cost summed over batches.

    Args:
        loaded: The models.
        asked: The questions.
        batch_size: Questions at once.
        chat: Whether to wrap prompts in the tokenizer's chat template.
        settings: Sampling, caching and guidance of `complete`.
        seed: Of the draws.
    """
    right, totals = 0, {"steps": 0, "rows": 0, "seconds": 0.0}
    for first in range(0, len(asked), batch_size):
        part = asked[first : first + batch_size]
        prompts = [problem.prompt for problem in part]
        ids, mask = encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, chat)
        output = complete(loaded, ids, mask, *settings, seed=seed + first)
        answers = texts(loaded.tokenizer, output.sequences[:, ids.shape[1] :], loaded.spec)
        right += sum(problem.right(answer) for problem, answer in zip(part, answers, strict=True))
        for name in ("steps", "rows"):
            totals[name] += getattr(output.stats, name)
        totals["seconds"] += output.stats.seconds["total"]
    return {"problems": len(asked), "right": right, "accuracy": right / len(asked), **totals}


def time_modes(
    loaded: Loaded, timing: Timing, sampling: Sampling, caching: Caching, guidance: Guidance
) -> list[dict[str, Any]]:
    """Return one record a prompt length and mode; modes take turns, so that a change of speed meets all alike."""
    records: list[dict[str, Any]] = []
    for length in timing.lengths:
        generator = torch.Generator().manual_seed(timing.seed)
        ids = random_prompts(loaded.spec, timing.batch_size, length, generator).to(loaded.device)
        peaks: dict[str, float] = {}

        def decode(mode: str, turn: int, ids: Tensor = ids, peaks: dict[str, float] = peaks) -> Decoded:
            if turn >= 0:
                return _one_of(mode, loaded, ids, sampling, caching, guidance)
            # The warm-up, which no clock sees.
            found, peaks[mode] = peak_mib(
                lambda: _one_of(mode, loaded, ids, sampling, caching, guidance), loaded.device
            )
            return found

        arms = {mode: partial(decode, mode) for mode in timing.names}
        runs = in_turns(arms, timing.repeats, device=loaded.device, keep=True)
        medians = {mode: done.median for mode, done in runs.items()}
        for mode, done in runs.items():
            stats, base = done.results[0].stats, runs.get("none", done).results[0].stats
            records.append(
                {
                    "prompt": length,
                    "mode": mode,
                    "seconds": round(medians[mode], 5),
                    "speed_up": round(medians["none"] / medians[mode], 3) if "none" in runs else None,
                    "row_ratio": round(base.rows / stats.rows, 3) if "none" in runs else None,
                    "steps": stats.steps,
                    "calls": stats.calls,
                    "peak_mib": round(peaks[mode], 2),
                    "tokens_per_step": round(sampling.gen_length / stats.steps, 3),
                }
            )
    return records


def completions(
    loaded: Loaded, prompt: str, timing: Timing, sampling: Sampling, caching: Caching, guidance: Guidance
) -> dict[str, str]:
    """Return what each mode makes of one prompt."""
    ids, _ = encode(loaded.tokenizer, [prompt], loaded.spec, loaded.device, False)
    found = {mode: _one_of(mode, loaded, ids, sampling, caching, guidance) for mode in timing.names}
    return {
        mode: texts(loaded.tokenizer, one.sequences[:, ids.shape[1] :], loaded.spec)[0]
        for mode, one in found.items()
    }


def _one_of(
    mode: str, loaded: Loaded, ids: Tensor, sampling: Sampling, caching: Caching, guidance: Guidance
) -> Decoded:
    from noiseworks.freecache.baselines import dual_cache_generate

    mask = torch.ones_like(ids)
    if mode == "dual":
        return dual_cache_generate(loaded.model, ids, sampling, attention_mask=mask, spec=loaded.spec)
    wanted = Caching(cache=False) if mode in ("none", "guide") else caching
    if mode in ("none", "cache"):
        return complete(loaded, ids, mask, sampling, wanted)
    lengths = Sampling(sampling.gen_length, sampling.block_length, early_stop=sampling.early_stop)
    return complete(loaded, ids, mask, lengths, wanted, guidance)
