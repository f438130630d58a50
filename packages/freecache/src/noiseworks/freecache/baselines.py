"""What FreeCache and Guided Diffusion are compared with, besides no cache: Fast-dLLM's, and the guide alone."""

import time

import torch
from noiseworks.freecache.cache import FreeCache, Positions
from noiseworks.freecache.decoding import Decoded, Stats, decode_blocks
from noiseworks.freecache.options import Caching, Sampling
from noiseworks.kits.masked_lm import HostSpec
from torch import Tensor, nn


class DualCache(FreeCache):
    """Fast-dLLM's dual cache (arXiv 2505.22618): a step computes the rows of its block alone.

    Keys and values of everything else, later masks included, are those of the last forward of everything, which
    begins each block.

    Args:
        model: The host, adapted by peft or not, in evaluation mode.
        spec: Its contract; by default detected.
    """

    def __init__(self, model: nn.Module, spec: HostSpec | None = None) -> None:
        super().__init__(model, spec, commit="stale")

    def _span(self, start: int, end: int, positions: Positions) -> tuple[int, int, int]:
        if start == 0:
            return super()._span(start, end, positions)
        return positions[0] - self.spec.shift, positions[1] - self.spec.shift, self.length


def dual_cache_generate(
    model: nn.Module,
    input_ids: Tensor,
    sampling: Sampling,
    *,
    attention_mask: Tensor | None = None,
    spec: HostSpec | None = None,
) -> Decoded:
    """Decode block by block with Fast-dLLM's dual cache; arguments of `freecache_generate`."""
    caching = Caching(commit="stale", sliding=0, refresh_every=1)
    return decode_blocks(DualCache(model, spec), input_ids, attention_mask, sampling, caching)


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
