"""Time cached decoding against full recomputation, and compiled windows against eager ones.

    python packages/freecache/benchmarks/cached_decoding.py --prompts 512,1024 --answer 64 --block 8

All forms decode the same random prompts with a LLaDA model of random weights in one process, in turns: what a step
costs does not depend on the weights. Ratios of the medians, next to the ratio of rows that go through the network,
are printed as JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from noiseworks.freecache import Decoded, FreeCache, Sampling, freecache_generate, full_recompute_generate
from noiseworks.kits.masked_lm import make_llada
from torch import Tensor, nn

VOCABULARY = 512
IDS = {"mask_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 2, "pad_token_id": VOCABULARY - 3}


def forms_of(model: nn.Module, sampling: Sampling, compiled: bool) -> dict[str, Callable[[Tensor], Decoded]]:
    """Return the forms by name; each keeps its cache, and its graphs, from run to run."""
    forms = {"full": lambda prompts: full_recompute_generate(model, prompts, sampling)}
    caches = {commit: FreeCache(model, commit=commit) for commit in ("lazy", "stale", "eager")}
    if compiled:
        caches["lazy, compiled"] = FreeCache(model, compile=True)

    def cached(cache: FreeCache) -> Callable[[Tensor], Decoded]:
        return lambda prompts: freecache_generate(model, prompts, cache=cache, **vars(sampling))

    return forms | {name: cached(cache) for name, cache in caches.items()}


def measure(forms: dict, prompts: Tensor, turns: int, device: str) -> dict[str, dict[str, float]]:
    """Return median seconds and rows of each form."""
    # On a CPU the process's own time, which other work on the machine does not count in.
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds, rows = {name: [] for name in forms}, {}
    for turn in range(turns + 1):
        for name, complete in forms.items():
            begin = clock()
            rows[name] = complete(prompts).stats.rows
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:  # the first turn warms up, and compiles
                seconds[name].append(clock() - begin)
    return {name: {"seconds": statistics.median(seconds[name]), "rows": rows[name]} for name in forms}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"answer": 64, "block": 8, "width": 128, "layers": 6, "heads": 4, "batch": 1, "turns": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--prompts", default="512,1024", help="prompt lengths, apart by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="measure compiled windows, too")
    chosen = parser.parse_args()
    lengths = [int(length) for length in chosen.prompts.split(",")]
    options = {"d_model": chosen.width, "n_layers": chosen.layers, "n_heads": chosen.heads}
    model = make_llada(VOCABULARY, **options, **IDS, max_sequence_length=max(lengths) + chosen.answer)
    model = model.to(chosen.device, getattr(torch, chosen.dtype))
    sampling = Sampling(chosen.answer, chosen.block, early_stop=0)
    report = {}
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        prompts = torch.randint(VOCABULARY - 3, (chosen.batch, length), generator=generator).to(chosen.device)
        forms = forms_of(model, sampling, chosen.compile)
        found = measure(forms, prompts, chosen.turns, chosen.device)
        for one in found.values():
            one["speed-up"] = found["full"]["seconds"] / one["seconds"]
            one["row ratio"] = found["full"]["rows"] / one["rows"]
        report[length] = found
    print(json.dumps(vars(chosen) | {"found": report}, indent=2))


if __name__ == "__main__":
    main()
