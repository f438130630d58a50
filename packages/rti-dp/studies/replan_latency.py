"""What a warm replan costs over its bare network calls, and whether the loop allocates memory.

    python packages/rti-dp/studies/replan_latency.py --steps 3,1,0

Everything runs in one process on one thread, turn by turn; seconds are medians of processor time for one
environment.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from noiseworks.kits.policies import DiffusionPolicy, NativePolicy, PolicyConfig
from noiseworks.rti_dp import RTIPolicy
from torch.profiler import ProfilerActivity, profile

FULL = "full replan"


def seconds(turns: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each turn; turns take turns, so that a busy machine slows all of them.

    Full replans take long and are measured at every tenth turn.
    """
    found = {name: [] for name in turns}
    for repeat in range(repeats):
        for name, turn in turns.items():
            if name == FULL and repeat % 10:
                continue
            begin = time.process_time()
            turn()
            found[name].append(time.process_time() - begin)
    return {name: float(np.median(values)) for name, values in found.items()}


def loop_bytes(policy: RTIPolicy, cond: torch.Tensor) -> int:
    """Return the bytes that the loop allocates when the network returns a tensor that it keeps."""
    kept, host = torch.zeros(1, policy.host.horizon, policy.host.action_dim), policy.loop.host
    policy.loop.host = type("Kept", (), {"denoise": lambda self, x, k, cond: kept})()
    generators = policy.generators
    policy.loop.run(policy.table, cond, 1, generators)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        policy.loop.run(policy.table, cond, 1, generators)
    policy.loop.host = host
    return sum(max(0, event.self_cpu_memory_usage) for event in traced.events())


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", default="3,1,0")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--down-dims", default="48,96,192")
    words = parser.parse_args()
    torch.set_num_threads(1)
    steps = tuple(int(k) for k in words.steps.split(","))
    sizes = tuple(int(width) for width in words.down_dims.split(","))
    host = NativePolicy(PolicyConfig(down_dims=sizes, kernel_size=3)).eval()
    plain, cached, full = RTIPolicy(host, steps, cache=False), RTIPolicy(host, steps), DiffusionPolicy(host)
    obs = {"obs": torch.randn(1, 33)}
    for policy in (plain, cached, full):
        policy.remember(obs, [0])
    x, cond, k = torch.randn(1, 16, 3), host.encode(plain.past([0])), torch.zeros(1, dtype=torch.int64)
    turns = {
        "one network call": lambda: host.denoise(x, k, cond),
        "replan": lambda: plain.replan([0]),
        "replan, modulation table": lambda: cached.replan([0]),
        FULL: lambda: full.replan([0]),
    }
    plain.replan([0]), cached.replan([0])
    found = seconds(turns, words.repeats)
    call = found["one network call"]
    for name, value in found.items():
        print(f"{name}: {1e3 * value:.2f} ms, {value / call:.2f} network calls")
    print(f"over bare calls: {found['replan'] / (len(steps) * call):.3f}")
    print(f"over bare calls, modulation table: {found['replan, modulation table'] / (len(steps) * call):.3f}")
    print(f"full replan over replan: {found[FULL] / found['replan']:.1f}")
    print(f"full replan over replan, modulation table: {found[FULL] / found['replan, modulation table']:.1f}")
    print(f"bytes allocated by the loop around the network: {loop_bytes(plain, cond)}")


if __name__ == "__main__":
    main()
