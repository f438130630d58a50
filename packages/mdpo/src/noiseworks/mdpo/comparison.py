"""The standard sampler and RCR on the same prompts: network calls, seconds, memory, texts."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from noiseworks.core.memory import peak_mib
from noiseworks.core.timing import in_turns
from noiseworks.kits.masked_lm import HostSpec
from noiseworks.mdpo.options import Batching, Decoding
from noiseworks.mdpo.prompts import decode_completions, encode_prompts
from noiseworks.mdpo.remasking import rcr_generate
from noiseworks.mdpo.results import SamplerRow
from torch import nn

REPEATS = 3


def compare_samplers(
    host: nn.Module,
    tokenizer: Any,
    spec: HostSpec,
    prompts: Sequence[str],
    decoding: Decoding,
    batching: Batching,
) -> tuple[SamplerRow, ...]:
    """Return a row for the standard sampler and one for RCR; both start from the same seeds and are timed in turns.

    Args:
        host: The model.
        tokenizer: Its tokenizer.
        spec: Its contract.
        prompts: Texts.
        decoding: How to decode.
        batching: Prompts a forward, and the seed of the first.
    """
    device = next(host.parameters()).device

    def decode(remask: str, turn: int) -> tuple[list[str], int]:
        texts, calls = [], 0
        for start in range(0, len(prompts), batching.batch_size):
            rows = [{"prompt": text} for text in prompts[start : start + batching.batch_size]]
            ids, mask = (part.to(device) for part in encode_prompts(tokenizer, spec, rows))
            seeds = [batching.seed + start + i for i in range(len(rows))]
            chosen = replace(decoding, remask=remask)
            made = rcr_generate(host, ids, chosen, attention_mask=mask, spec=spec, seeds=seeds)
            texts += decode_completions(tokenizer, spec, made.sequences[:, ids.shape[1] :].cpu())
            calls += made.calls
        return texts, calls

    arms = {name: partial(decode, name) for name in ("low_confidence", "rcr")}
    counted = {name: peak_mib(partial(arm, 0), device) for name, arm in arms.items()}
    times = in_turns(arms, REPEATS, warmup=0, device=device)
    return tuple(
        SamplerRow(name, calls, times[name].median, peak, tuple(texts))
        for name, ((texts, calls), peak) in counted.items()
    )
