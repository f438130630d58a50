"""The claim: three network calls from the last plan do what a hundred from noise do, at every step.

On the U-Net policy of `tabletop`, tasks with a gripper: the full sampler in chunks of eight actions, DDIM with ten
steps, and the same three steps from fresh noise, against real-time iteration; and, on fewer episodes, DDIM at
every step, the paper's long list with a snapped gripper, and discs that jump.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, Target
from noiseworks.bench.testbeds.tabletop import TabletopBatch, film, jerk, mode_switches
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.hosts import load_host
from noiseworks.kits.policies.protocols import DenoiserHost
from noiseworks.kits.policies.replanning import DiffusionPolicy, ReplanningPolicy
from noiseworks.kits.policies.video import write_video
from noiseworks.rti_dp.baselines import TruncatedPolicy
from noiseworks.rti_dp.discrete import DiscreteSpec
from noiseworks.rti_dp.policy import RTIPolicy

HOST = "testbed:tabletop-unet"
TASKS = (0, 1, 2, 3, 4, 5, 11)  # those with a gripper
STEPS = (75, 30, 0)  # chosen on seeds below 1000
LONG = (22, 20, 18, 16, 14, 12, 10, 8, 5, 3, 2, 1, 0)
GRIPPER = DiscreteSpec((2,), "clip", 10.0)
SOLVED = 0.3  # success of the host below which there is nothing to keep
ARMS = (
    Arm("full", "100 steps, chunks of 8", "baseline"),
    Arm("ddim", "DDIM-10, chunks of 8", "baseline"),
    Arm("ddim1", "DDIM-10, every action", "baseline"),
    Arm("cold", "3 steps from fresh noise", "naive"),
    Arm("rti", "RTI, 3 steps", "method"),
    Arm("clip13", "RTI, 13 steps, gripper snapped", "method"),
)
MAKE: dict[str, Callable[[DenoiserHost, int], ReplanningPolicy]] = {
    "full": lambda host, n: DiffusionPolicy(host, num_envs=n),
    "ddim": lambda host, n: DiffusionPolicy(host, solver="ddim", num_inference_steps=10, num_envs=n),
    "ddim1": lambda host, n: DiffusionPolicy(
        host, solver="ddim", num_inference_steps=10, n_action_steps=1, num_envs=n
    ),
    "cold": lambda host, n: TruncatedPolicy(host, STEPS, num_envs=n),
    "rti": lambda host, n: RTIPolicy(host, STEPS, num_envs=n),
    "clip13": lambda host, n: RTIPolicy(host, LONG, discrete=GRIPPER, num_envs=n),
}
JUDGED = ("full", "rti")  # arms that run all episodes; the others run a part of them


@cache
def loaded(name: str, device: str) -> DenoiserHost:
    """Return the policy, loaded once a process."""
    return load_host(name, device=device)


def episodes_of(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a judging seed's episodes, `size` of each task; fewer are the first of more, in the same order."""
    tasks, seeds = episode_list(TASKS, size, 1000 * seed)
    order = np.lexsort((tasks, seeds))
    return tasks[order], seeds[order]


def solved(
    arm: str, host: DenoiserHost, seed: int, size: int, max_steps: int, disturb: bool = False
) -> tuple[EvaluationReport, ReplanningPolicy]:
    """Return an arm's episodes, all of them in one batch."""
    chosen = episodes_of(seed, size)
    tables = TabletopBatch(len(chosen[0]), disturb=disturb, max_steps=max_steps)
    policy = MAKE[arm](host, tables.num_envs)
    return evaluate(policy, tables, *chosen, record=True), policy


@cache
def replan_seconds(name: str, device: str, seed: int, turns: int) -> dict[str, list[float]]:
    """Return seconds of a replan of every arm for one environment; arms take turns, warm starts are warm."""
    host, table = loaded(name, device), TabletopBatch(1)
    policies = {arm: make(host, 1) for arm, make in MAKE.items()}
    tasks, seeds = episodes_of(seed, 1)
    table.reset(np.zeros(1, np.int64), tasks[:1], seeds[:1])
    obs = {key: torch.from_numpy(value) for key, value in table.observe().items()}
    for policy in policies.values():
        policy.reset(seeds=[int(seeds[0])])
        policy.act(obs)
        policy.remember(obs, [0])
        policy.replan([0])
    found: dict[str, list[float]] = {arm: [] for arm in policies}
    for _ in range(turns):
        for arm, policy in policies.items():
            begin = time.perf_counter()
            policy.replan([0])
            found[arm].append(time.perf_counter() - begin)
    return found


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed: success, calls and smoothness, success under disturbance, and latency."""
    settings, name = context.settings, context.model or HOST
    host = loaded(name, context.device)
    context.progress(0, 3, f"{arm}: episodes")
    size = settings["episodes" if arm in JUDGED else "few"]
    report, policy = solved(arm, host, seed, size, settings["max_steps"])
    few = len(TASKS) * settings["few"]
    success = report.success.astype(float).tolist()
    metrics: dict[str, Any] = {
        "success_few": success[:few],
        "calls_per_action": report.nfe_per_action,
        "switches": mode_switches(report.observations[..., :2], report.actions)[:few].astype(float).tolist(),
        "jerk": jerk(report.actions)[:few].tolist(),
    }
    if arm in JUDGED:
        metrics["success"] = success
        context.progress(1, 3, f"{arm}: discs that jump")
        disturbed, _ = solved(arm, host, seed, settings["few"], settings["max_steps"], disturb=True)
        metrics["success_disturbed"] = disturbed.success.astype(float).tolist()
    context.progress(2, 3, f"{arm}: latency")
    times = replan_seconds(name, context.device, seed, settings["turns"])[arm]
    metrics["milliseconds"] = [1e3 * value for value in times]
    notes = []
    if isinstance(policy, RTIPolicy):
        notes.append(f"{arm}: steps {list(policy.table.timesteps)}, {policy.restarts} restarts")
    images = {}
    if settings["film"] and arm in JUDGED:
        path = context.folder / f"{arm}.webp"
        write_video(film(report.observations[: len(TASKS)]), path)
        images[f"{arm}: one episode of each task"] = path
    return Measurement(metrics, images=images, notes=notes)


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the host solves too little to lose anything."""
    values = [value for one in measurements["full"] for value in one.metrics["success"]]
    share = sum(values) / len(values)
    return None if share >= SOLVED else f"the full sampler solves only {share:.0%} of the episodes"


def _sizes(episodes: int, few: int, turns: int, max_steps: int = 100, film: bool = True) -> dict[str, Any]:
    """Return settings; `episodes` and `few` count episodes of each task."""
    return {"episodes": episodes, "few": few, "turns": turns, "max_steps": max_steps, "film": film}


CLAIM = Claim(
    method="rti-dp",
    paper="Real-Time Iteration Scheme for Diffusion Policy (IROS 2025, arXiv 2508.05396)",
    statement=(
        "Starting each replan of a trained diffusion policy from its last plan takes 3 network calls an action "
        "instead of 100 at comparable success (paper: three steps on most tasks)."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        Target("seconds of a replan", "milliseconds", "rti", "full", "ratio", 1 / 25, "lower"),
        Target("success", "success", "rti", "full", "difference", -0.03, "higher", guard=True),
        Target("against fresh noise", "success_few", "rti", "cold", "difference", 0.0, "higher"),
        Target("success, disturbed", "success_disturbed", "rti", "full", "difference", 0.0, "higher"),
    ),
    scales={
        "smoke": Scale((1000,), 300, _sizes(1, 1, 2, max_steps=6, film=False)),
        "quick": Scale((1000,), 300, _sizes(2, 1, 3, max_steps=60)),
        "laptop": Scale((1000, 1001, 1002), 1500, _sizes(29, 3, 8)),
        "full": Scale((1000, 1001, 1002, 1003, 1004), 36000, _sizes(50, 50, 50)),
    },
    run=run_arm,
    units="episode",
    columns={
        "success": "success",
        "success_few": "success, part of the episodes",
        "success_disturbed": "success, discs jump",
        "calls_per_action": "network calls an action",
        "milliseconds": "milliseconds a replan",
        "switches": "changes of side",
        "jerk": "jerk",
    },
    precondition=precondition,
)
