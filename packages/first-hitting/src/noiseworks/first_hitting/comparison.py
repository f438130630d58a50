"""First-hitting and ancestral samples of one model beside each other: time, calls, quality and diversity."""

import time
from collections.abc import Callable
from typing import Any

import torch
from noiseworks.core.memory import peak_mib
from noiseworks.core.models import resolve_model
from noiseworks.first_hitting.ancestral import AncestralSettings, ancestral_sample
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.metrics import distinct_tokens, generative_nll, unigram_entropy
from noiseworks.first_hitting.options import Comparison
from noiseworks.first_hitting.sampling import Settings, fhs_sample
from noiseworks.kits.masked_lm import HostSpec
from torch import Tensor

Scorer = Callable[[Tensor], Tensor]


def compare_samplers(
    denoiser: Denoiser,
    spec: HostSpec,
    comparison: Comparison,
    scorer: Scorer | None,
    device: torch.device,
    decode: Callable[[Tensor], str] | None = None,
) -> list[dict[str, Any]]:
    """Return one row of figures a sampler, first-hitting first. Each runs twice: its memory is counted, then its time.

    Args:
        denoiser: Of the model.
        spec: The model's contract.
        comparison: Sizes and seed.
        scorer: tokens [B, L] -> logits [B, L, V] of a causal language model, for generative perplexity.
        device: Of the model.
        decode: Tokens [L] -> text; each row then holds its first sample.
    """
    sizes = (comparison.samples, comparison.gen_length)
    start = torch.full((sizes[0], 1), spec.eos_ids[0] if spec.eos_ids else spec.pad_id, device=device)
    canvas = torch.cat([start, start.new_full(sizes, spec.mask_id)], dim=1)
    table = []
    for steps in (None, *comparison.grid):

        def sample(steps: int | None = steps) -> Any:
            if steps is None:
                seeds = range(comparison.seed, comparison.seed + comparison.samples)
                return fhs_sample(denoiser, canvas, Settings(spec.mask_id), seeds=seeds)
            settings = AncestralSettings(spec.mask_id, steps, method=comparison.baseline)
            source = torch.Generator().manual_seed(comparison.seed)
            return ancestral_sample(denoiser, canvas, settings, generator=source)

        _, peak = peak_mib(sample, device)
        begin = time.perf_counter()
        found = sample()
        text = found.tokens[:, 1:].cpu()  # waits for a GPU
        row = {
            "sampler": "first-hitting" if steps is None else f"ancestral, T = {steps}",
            "calls": found.calls,
            "draws": sizes[0] * sizes[1] if steps is None else found.draws,
            "seconds": time.perf_counter() - begin,
            "peak_mib": peak,
        }
        row["unigram_entropy"] = float(unigram_entropy(text).mean())
        row["distinct_tokens"] = float(distinct_tokens(text).double().mean())
        if scorer is not None:
            row["perplexity"] = float(generative_nll(scorer, found.tokens).mean().exp())
        if decode is not None:
            row["text"] = decode(text[0])
        table.append(row)
    return table


def causal_scorer(name: str, device: torch.device, dtype: torch.dtype | None) -> Scorer:
    """Return the scorer of a causal language model: a directory, a hub id or `testbed:<name>`."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=dtype or "auto")
    model = loaded.to(device).eval()
    return lambda tokens: model(tokens).logits
