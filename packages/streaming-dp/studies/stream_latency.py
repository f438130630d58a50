"""What a streaming cycle costs over its bare network calls, against the 100-call policy, eager and compiled.

    python packages/streaming-dp/studies/stream_latency.py --compile

Untrained networks of the testbed's sizes: what a call costs does not depend on the weights. Everything runs in one
process on one thread, turn by turn, for one environment; times are medians of the process's own time.
"""

import argparse
import copy
import json
import time

import numpy as np
import torch
from noiseworks.core.timing import in_turns
from noiseworks.kits.policies import DiffusionPolicy, NativePolicy, PolicyConfig, reverse_step_
from noiseworks.streaming_dp import StreamingPolicy, convert


def step_seconds(policy: StreamingPolicy, repeats: int) -> float:
    """Return the median seconds of a scheduler step of 64 samples of 16 positions and 10 dimensions."""
    x, out, noise, scratch = (torch.randn(64, 16, 10) for _ in range(4))
    table = policy.scheduler.table.at(torch.tensor([policy.spec.buffer]))
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        reverse_step_(x, out, scratch, noise, table, 0)
        taken.append(time.perf_counter() - begin)
        x.clamp_(-3, 3)
    return float(np.median(taken))


@torch.inference_mode()
def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--down-dims", default="48,96,192")
    parser.add_argument("--compile", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(1)
    sizes = tuple(int(width) for width in words.down_dims.split(","))
    host = NativePolicy(PolicyConfig(down_dims=sizes, kernel_size=3)).eval()
    streaming = convert(host, n_action_steps=1)
    obs = {"obs": torch.randn(1, 33)}
    x, cond = torch.randn(1, 16, 3), host.encode({"obs": torch.randn(1, 2, 33)})
    levels = torch.tensor([StreamingPolicy(streaming).spec.buffer])
    policies = {"100 calls": DiffusionPolicy(host, n_action_steps=1), "streaming": StreamingPolicy(streaming)}
    if words.compile:
        compiled = copy.deepcopy(host)
        compiled.net = torch.compile(compiled.net, dynamic=False)
        policies["100 calls, compiled"] = DiffusionPolicy(compiled, n_action_steps=1)
        policies["streaming, compiled"] = StreamingPolicy(streaming, compile_network=True)
    for policy in policies.values():
        for _ in range(4):
            policy.act(obs)
    arms = {name: lambda turn, policy=policy: policy.act(obs) for name, policy in policies.items()}
    arms["one call"] = lambda turn: streaming.denoise(x, levels, cond)
    found = in_turns(arms, words.repeats, warmup=2, clock=time.process_time)
    # A cycle has 6 or 7 calls in turn, so means over whole periods are compared.
    means = {name: float(np.mean(times.seconds)) for name, times in found.items()}
    calls = 100 / policies["streaming"].spec.chunks
    record = {f"ms, {name}": round(1e3 * value, 3) for name, value in means.items()}
    record["cycle over its bare calls"] = round(means["streaming"] / (calls * means["one call"]), 3)
    record["streaming, times faster"] = round(means["100 calls"] / means["streaming"], 2)
    if words.compile:
        alone = means["100 calls"] / means["100 calls, compiled"]
        record["compiling alone, times faster"] = round(alone, 2)
        record["product"] = round(alone * record["streaming, times faster"], 2)
        record["both, times faster"] = round(means["100 calls"] / means["streaming, compiled"], 2)
    record["us, scheduler step (64, 16, 10)"] = round(1e6 * step_seconds(policies["streaming"], 300), 1)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
