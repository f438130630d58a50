"""Does the error surge, and with it the gain of bubbling, grow with depth? Policies of several depths, trained alike.

    python packages/bac/studies/depth.py --layers 4 8 --steps 6000 --out depth

The paper finds block-wise schedules without bubbling worse than one schedule for all blocks. Each policy is trained on
the demonstrations of `tabletop` (a stopped run goes on), profiled, and run under plans of equal M. Printed are the
error of feed-forward outputs at updates and at reuse, for all blocks and for the most volatile, and that of the
actions, against the full run with the same noise.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from noiseworks.bac import CachePlan, FeatureProfile, Schedule, error_report, profile
from noiseworks.bac.bubbling import most_volatile
from noiseworks.bac.comparison import make_plans
from noiseworks.bac.data import load_observations
from noiseworks.bench.testbeds.tabletop import recipes
from noiseworks.bench.testbeds.tabletop.training import balanced_weights
from noiseworks.kits.policies import NativePolicy
from noiseworks.kits.policies.training import PolicyTrainer
from noiseworks.kits.training import Batches, Fit, fit, open_run
from torch import nn

PLANS = ("uniform", "unified", "block", "bac")
SEED = 11  # below 1000: a measurement, not a judgement


def trained(layers: int, options: argparse.Namespace) -> NativePolicy:
    """Return a policy of some depth, trained in its own folder."""
    data = recipes.prepare([], options.demonstrations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(layers)
        host = recipes.make_host(replace(recipes.TRANSFORMER, n_layer=layers), data)
        # As the testbed's own policy: an observation is heard from the first step on.
        for layer in (host.net.cond_obs_emb, *host.net.encoder):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    module = PolicyTrainer(
        host,
        learning_rate=1e-3,
        warmup_steps=min(200, options.steps // 10),
        total_steps=options.steps,
        loss_weights=balanced_weights(host.scheduler.alphas_cumprod),
    )
    length = Fit(max_steps=options.steps, batch_size=128, device=options.device)
    settings = {"layers": layers, "demonstrations": options.demonstrations, "fit": length}
    with open_run(options.out / f"layers-{layers}", settings) as run:
        fit(module, Batches(data, length.batch_size), run=run, options=length, clip=1.0)
    return module.averaged_host()


def figures(host: NativePolicy, plan: CachePlan, found: FeatureProfile, seed: int) -> dict[str, float]:
    """Return a plan's mean errors."""
    report = error_report(host, plan, load_observations("tabletop", host, 4, seed), seed=seed)
    deep = [i for i, kind in enumerate(plan.kinds) if kind == "ff"]
    volatile = most_volatile(found.volatility, found.kinds, min(5, len(deep)), "ffn")
    return {
        "blocks computed": plan.share,
        "FFN update": float(report.update_error[deep].mean()),
        "volatile FFN update": float(report.update_error[volatile].mean()),
        "reuse": float(report.reuse_error.mean()),
        "actions": report.action_error,
    }


def main(words: list[str] | None = None) -> None:
    """Print a table for each depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--demonstrations", type=int, default=2400)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--bubble", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("depth"))
    options = parser.parse_args(words)
    for layers in options.layers:
        host = trained(layers, options)
        generators = [torch.Generator().manual_seed(SEED + row) for row in range(8)]
        found = profile(host, load_observations("tabletop", host, 8, SEED), generator=generators)
        plans = make_plans(found, Schedule(updates=options.updates, bubble=options.bubble))
        print(f"{layers} layers, {options.steps} steps of training")
        for name in PLANS:
            row = figures(host, plans[name], found, SEED + 1)
            print(f"  {name:10}", "  ".join(f"{label} {value:.4f}" for label, value in row.items()))


if __name__ == "__main__":
    main()
