"""Time cached decoding against full recomputation.

    python packages/freecache/studies/cached_decoding.py --prompts 512,1024 --answer 64 --block 8

All forms decode the same random prompts with a LLaDA model of random weights in one process, in turns: what a step
costs does not depend on the weights. Ratios of the medians, next to the ratio of rows that go through the network,
are printed as JSON.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from noiseworks.core.timing import in_turns, work_clock
from noiseworks.freecache import Caching, Decoded, FreeCache, Sampling, freecache_generate
from noiseworks.freecache.options import CommitRule
from noiseworks.kits.masked_lm import make_llada
from torch import Tensor, nn

VOCABULARY = 512
IDS = {"mask_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 2, "pad_token_id": VOCABULARY - 3}


def forms_of(model: nn.Module, sampling: Sampling) -> dict[str, Callable[[Tensor], Decoded]]:
    """Return the forms by name; each keeps its cache from run to run."""
    caches = {commit: FreeCache(model, commit=commit) for commit in get_args(CommitRule)}

    def cached(cache: FreeCache | None) -> Callable[[Tensor], Decoded]:
        caching = Caching(cache=cache is not None, sliding=0)
        return lambda prompts: freecache_generate(model, prompts, sampling, caching, cache=cache)

    return {name: cached(cache) for name, cache in {"full": None, **caches}.items()}


def measure(forms: dict, prompts: Tensor, turns: int, device: str) -> dict[str, dict[str, float]]:
    """Return median seconds and rows of each form."""
    arms = {
        name: lambda turn, complete=complete: complete(prompts).stats.rows for name, complete in forms.items()
    }
    times = in_turns(arms, turns, device=device, clock=work_clock(device), keep=True)
    return {name: {"seconds": one.median, "rows": one.results[-1]} for name, one in times.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"answer": 64, "block": 8, "width": 128, "layers": 6, "heads": 4, "batch": 1, "turns": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--prompts", default="512,1024", help="prompt lengths, apart by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    chosen = parser.parse_args(words)
    lengths = [int(length) for length in chosen.prompts.split(",")]
    options = {"d_model": chosen.width, "n_layers": chosen.layers, "n_heads": chosen.heads}
    model = make_llada(VOCABULARY, **options, **IDS, max_sequence_length=max(lengths) + chosen.answer)
    model = model.to(chosen.device, getattr(torch, chosen.dtype))
    sampling = Sampling(chosen.answer, chosen.block, "schedule", early_stop=0)
    report = {}
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        prompts = torch.randint(VOCABULARY - 3, (chosen.batch, length), generator=generator).to(chosen.device)
        forms = forms_of(model, sampling)
        found = measure(forms, prompts, chosen.turns, chosen.device)
        for one in found.values():
            one["speed-up"] = found["full"]["seconds"] / one["seconds"]
            one["row ratio"] = found["full"]["rows"] / one["rows"]
        report[length] = found
    print(json.dumps(vars(chosen) | {"found": report}, indent=2))


if __name__ == "__main__":
    main()
