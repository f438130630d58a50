"""Time the rollouts of one prompt, G in one forward, against one after the other.

    python packages/mdpo/benchmarks/rollout_throughput.py --rollouts 8 --length 16 --steps 8

Both forms run in one process, in turns, on an untrained LLaDA host and with the same seeds; the ratio of their
medians is printed as JSON, with whether they drew the same completions. Either way every step is recorded.
"""

import argparse
import json

import torch
from noiseworks.core.timing import in_turns, work_clock
from noiseworks.kits.masked_lm import detect_host, make_llada
from noiseworks.mdpo import Decoding, rcr_generate
from torch import Tensor

VOCABULARY, MASK, EOS, PAD = 128, 127, 126, 125


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"rollouts": 8, "prompt": 10, "length": 16, "steps": 8, "width": 128, "layers": 6, "turns": 9}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
    model = make_llada(VOCABULARY, d_model=chosen.width, n_layers=chosen.layers, **ids).to(chosen.device)
    spec = detect_host(model)
    prompt = torch.arange(chosen.prompt, device=chosen.device)[None]
    decoding = Decoding(chosen.length, chosen.length, chosen.steps, 0.7, remask="low_confidence")

    def draw(seeds: range) -> Tensor:
        rows = prompt.expand(len(seeds), -1)
        return rcr_generate(model, rows, decoding, spec=spec, seeds=seeds, record=True).sequences

    arms = {
        "batched": lambda turn: draw(range(chosen.rollouts)),
        "one_by_one": lambda turn: torch.cat([draw(range(s, s + 1)) for s in range(chosen.rollouts)]),
    }
    clock = work_clock(chosen.device)
    times = in_turns(arms, chosen.turns, device=chosen.device, clock=clock, keep=True)
    medians = {name: one.median for name, one in times.items()}
    report = {
        "seconds": medians,
        "ratio": medians["one_by_one"] / medians["batched"],
        "same_completions": torch.equal(*(one.results[-1] for one in times.values())),
    }
    print(json.dumps(vars(chosen) | report, indent=2))


if __name__ == "__main__":
    main()
