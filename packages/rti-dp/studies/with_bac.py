"""Real-time iteration and block-wise caching on one transformer policy: does the product of the gains come out?

    python packages/rti-dp/studies/with_bac.py --model testbed:tabletop-transformer

Needs noiseworks-bac. One environment, one thread, arms take turns; seconds are medians of processor time. The change
is that of the prediction by caching, as a share of the prediction's root mean square, from the same noise. Success is
over `tabletop` episodes that begin alike; real-time iteration replans at every step there, and starts cold with as
many calls as its list has, because a plan is for one number of calls.
"""

import argparse
import time
from contextlib import nullcontext

import numpy as np
import torch
from noiseworks.bac import Schedule, attach, make_plan, profile
from noiseworks.bench.testbeds.tabletop import TabletopBatch, demonstrations
from noiseworks.bench.testbeds.tabletop.tasks import NUM_TASKS
from noiseworks.kits.policies import DiffusionPolicy, ReplanningPolicy, episode_list, evaluate, load_host
from noiseworks.rti_dp import RTIPolicy


def replan(policy: ReplanningPolicy, seed: int) -> tuple[torch.Tensor, float]:
    """Return a prediction from a seed's noise, and the processor time it took; a guess is left as it was."""
    state = policy.state_dict()
    policy.generators[0].manual_seed(seed)
    begin = time.process_time()
    prediction = policy.replan([0]).prediction
    seconds = time.process_time() - begin
    policy.load_state_dict(state)
    return prediction, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="testbed:tabletop-transformer")
    parser.add_argument("--steps", default="75,60,45,30,15,0")
    parser.add_argument("--updates", type=int, nargs=2, default=(10, 3), help="of 100 steps, and of the list")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=0, help="of each task, for success")
    parser.add_argument("--seed", type=int, default=1000)
    words = parser.parse_args()
    torch.set_num_threads(1)
    steps, host = tuple(int(k) for k in words.steps.split(",")), load_host(words.model)
    seen = {"obs": torch.from_numpy(demonstrations(1).obs[10:12])[None]}
    policies = {"100 steps": DiffusionPolicy(host), "RTI": RTIPolicy(host, steps)}
    for policy in policies.values():
        for step in range(2):
            policy.remember({"obs": seen["obs"][:, step]}, [0])
    policies["RTI"].replan([0])
    plans = {
        "100 steps": make_plan(profile(host, seen, num_steps=100), Schedule(updates=words.updates[0])),
        "RTI": make_plan(profile(host, seen, num_steps=len(steps)), Schedule(updates=words.updates[1])),
    }
    found: dict[str, list[float]] = {}
    changes: dict[str, list[float]] = {name: [] for name in policies}
    for seed in range(words.repeats):
        for name, policy in policies.items():
            plain, seconds = replan(policy, seed)
            with attach(host, plans[name]):
                cached, faster = replan(policy, seed)
            found.setdefault(name, []).append(seconds)
            found.setdefault(f"{name}, cached", []).append(faster)
            changes[name].append(
                float((cached - plain).square().mean().sqrt() / plain.square().mean().sqrt())
            )
    median = {name: float(np.median(values)) for name, values in found.items()}
    gain = {name: median["100 steps"] / value for name, value in median.items()}
    for name, value in median.items():
        print(f"{name}: {1e3 * value:.1f} ms, {gain[name]:.1f} times faster than 100 steps")
    for name, values in changes.items():
        print(f"{name}: {plans[name].share:.0%} of the blocks computed, change {np.median(values):.1%}")
    print(
        f"product of the gains: {gain['RTI'] * gain['100 steps, cached']:.1f}, measured: {gain['RTI, cached']:.1f}"
    )
    if not words.episodes:
        return
    tasks, seeds = episode_list(np.arange(NUM_TASKS), words.episodes, 100 * words.seed)
    env = TabletopBatch(len(tasks))
    for name, plan in plans.items():
        for suffix in ("", ", cached"):
            policy: ReplanningPolicy = DiffusionPolicy(host, num_envs=len(tasks))
            if name == "RTI":
                policy = RTIPolicy(host, steps, initial_steps=len(steps), num_envs=len(tasks))
            with attach(host, plan) if suffix else nullcontext():
                report = evaluate(policy, env, tasks, seeds)
            low, high = report.interval
            print(f"{name}{suffix}: success {report.success_rate:.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
