"""Time a replan with routed, merged and batched experts, and with a dense MLP of the same active width.

    python packages/mode/studies/expert_caching.py --width 256 --layers 4 --batch 1

Weights are random: only time is measured, all kinds in turns in one process.
"""

import argparse

import torch
from noiseworks.kits.policies import LinearNormalizer
from noiseworks.mode import EDMPolicy, MoDEConfig, MoDEModel, StateEncoder
from noiseworks.mode.timing import medians


def make(width: int, layers: int, device: str, **experts: int) -> MoDEModel:
    """Return an untrained model."""
    config = MoDEConfig(
        action_dim=3,
        obs_dim=21,
        goal_dim=32,
        width=width,
        num_layers=layers,
        num_heads=max(1, width // 32),
        **experts,
    )
    encoder = StateEncoder(torch.zeros(12, 1, 32), LinearNormalizer.identity(21))
    return MoDEModel(config, encoder, LinearNormalizer.identity(3)).to(device)


def main(words: list[str] | None = None) -> None:
    """Print the median milliseconds of a replan and its ratio to routing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    sparse = make(options.width, options.layers, options.device, num_experts=4, top_k=2)
    dense = make(options.width, options.layers, options.device, num_experts=1, top_k=1, expert_factor=8)
    kinds = {"routed": EDMPolicy(sparse), "dense, same active width": EDMPolicy(dense)}
    for form in ("merged", "bmm"):
        kinds[form] = EDMPolicy(sparse)
        kinds[form].cache_experts(form=form)
    seconds = medians(kinds, options.batch, options.repeats)
    for name, time in seconds.items():
        print(f"{name:25} {1000 * time:8.2f} ms  {time / seconds['routed']:.2f} of routed")


if __name__ == "__main__":
    main()
