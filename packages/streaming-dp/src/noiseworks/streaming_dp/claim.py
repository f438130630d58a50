"""The claim: a converted, briefly fine-tuned policy replans at every step in a fifteenth of the network calls.

On `tabletop` the ordinary policy, its fast versions and the streaming conversion act from the same initial
states, undisturbed and with discs that jump. Seconds per replan are measured in turn, with one environment.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, bench
from noiseworks.bench.testbeds.tabletop import TabletopBatch, mode_switches
from noiseworks.core.models import resolve_model
from noiseworks.kits.policies import (
    DiffusionPolicy,
    EvaluationReport,
    ReplanningPolicy,
    episode_list,
    evaluate,
    load_host,
)
from noiseworks.kits.policies.video import write_video
from noiseworks.streaming_dp.commands import TASKS, record_stream
from noiseworks.streaming_dp.difference import load_difference, save_difference
from noiseworks.streaming_dp.hosts import StreamingHost, convert
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS
from noiseworks.streaming_dp.policy import StreamingPolicy
from noiseworks.streaming_dp.tabletop_data import load_windows
from noiseworks.streaming_dp.training import TrainConfig, train

HOST = "testbed:tabletop-unet"
SHIPPED = Path(__file__).parent / "shipped"
# Regimes of the two fine-tunings: the paper's mixture, and the ablation without unequal levels.
REGIMES = {"sdp": DEFAULT_WEIGHTS, "sdp_constant": (1.0, 0.0, 0.0, 0.0)}
RECIPE = {"batch_size": 128, "learning_rate": 5e-4, "warmup_steps": 100}
# Streams start from rest with an open gripper; zeros would half close it. Chosen on seeds below 1000.
REST = (0.0, 0.0, -1.0)
# Arms of side comparisons, with fewer episodes.
SIDE = ("cold", "sdp_constant")
# Success of the ordinary policy below which there is nothing to keep.
SOLVED = 0.2
ARMS = (
    Arm("dp", "DDPM, 100 calls, 8 actions", "baseline"),
    Arm("ddim", "DDIM, 10 calls, 8 actions", "baseline"),
    Arm("cold", "DDIM, 7 calls, every step", "naive"),
    Arm("sdp_constant", "streaming, constant levels in training", "naive"),
    Arm("sdp", "streaming, converted and fine-tuned", "method"),
)


@cache
def tuned(arm: str, name: str, steps: int, folder: Path) -> StreamingHost:
    """Return an arm's streaming policy: as shipped, or trained here, once a process.

    Args:
        arm: `sdp` or `sdp_constant`.
        name: The ordinary policy.
        steps: Optimizer steps; 0 for the shipped one, which belongs to the testbed's policy.
        folder: Where a training keeps its checkpoints.
    """
    host = load_host(name)
    if steps == 0:
        return load_difference(SHIPPED / arm, host)
    made = convert(host, n_action_steps=1)
    config = TrainConfig(max_steps=steps, weights=REGIMES[arm], device="cpu", **RECIPE)
    return train(made, load_windows("testbed:tabletop", made.chunk), folder / arm, config, progress=False)


def make_policy(arm: str, name: str, steps: int, folder: Path, num_envs: int) -> ReplanningPolicy:
    """Return the policy of an arm."""
    if arm in REGIMES:
        host = tuned(arm, name, steps, folder)
        return StreamingPolicy(host, buffer_init="constant", constant=REST, num_envs=num_envs)
    if arm == "dp":
        return DiffusionPolicy(load_host(name), num_envs=num_envs)
    calls, executed = (10, None) if arm == "ddim" else (7, 1)
    return DiffusionPolicy(
        load_host(name), solver="ddim", num_inference_steps=calls, num_envs=num_envs, n_action_steps=executed
    )


@cache
def latencies(name: str, steps: int, folder: Path, rounds: int) -> Mapping[str, list[float]]:
    """Return milliseconds per replan of every arm with one environment, arm after arm in every round."""
    policies = {arm.name: make_policy(arm.name, name, steps, folder, 1) for arm in ARMS}
    env = TabletopBatch(1)
    env.reset(np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    obs = {key: torch.from_numpy(value) for key, value in env.observe().items()}
    taken: dict[str, list[float]] = {arm: [] for arm in policies}
    for number in range(rounds + 4):  # the first rounds fill the streams' tables
        for arm, policy in policies.items():
            policy.act(obs)
            policy.reset([0]) if isinstance(policy, DiffusionPolicy) else None
            if number >= 4:
                taken[arm].append(1e3 * policy.stats.latencies[-1])
    return taken


def run_episodes(arm: str, seed: int, context: Context, episodes: int, *, disturb: bool) -> EvaluationReport:
    """Return an arm's episodes; all arms of a seed start in the same states."""
    settings, name = context.settings, context.model or HOST
    tasks, seeds = episode_list(settings["tasks"], episodes, 100 * seed)
    env = TabletopBatch(len(tasks), disturb=disturb)
    policy = make_policy(arm, name, settings["train_steps"], context.folder.absolute(), env.num_envs)
    return evaluate(policy, env, tasks, seeds, record=True)


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed; arms of the side comparisons act in the first episodes of each task only."""
    settings, name = context.settings, context.model or HOST
    resolve_model(name)
    steps, folder = settings["train_steps"], context.folder.absolute()
    context.progress(0, 2, f"{arm}: episodes")
    report = run_episodes(arm, seed, context, settings["few" if arm in SIDE else "episodes"], disturb=False)
    times = latencies(name, steps, folder, settings["rounds"])[arm]
    first = report.seeds < 100 * seed + settings["few"]
    switches = mode_switches(report.observations[..., :2], report.actions)
    metrics: dict[str, Any] = {
        "latency": times,
        "latency_p95": float(np.quantile(times, 0.95)),
        "calls": report.nfe_per_replan,
        "calls_per_action": report.nfe_per_action,
        "success_few": report.success[first].astype(float).tolist(),
        "mode_switches": switches[first].astype(float).tolist(),
    }
    if arm not in SIDE:
        context.progress(1, 2, f"{arm}: disturbed episodes")
        disturbed = run_episodes(arm, seed, context, settings["few"], disturb=True)
        metrics["success"] = report.success.astype(float).tolist()
        metrics["success_disturbed"] = disturbed.success.astype(float).tolist()
    tasks = report.by_task()
    series = {"success over tasks": (sorted(tasks), [tasks[task]["success"] for task in sorted(tasks)])}
    images = {}
    if arm == "sdp" and settings["video"]:
        video = context.folder / "stream.webp"
        shown = settings["tasks"][:4]
        write_video(
            record_stream(make_policy(arm, name, steps, folder, len(shown)), shown, 100 * seed), video
        )
        images["the paths in the buffers, fainter where noisier"] = video
    low, high = report.interval
    note = (
        f"{arm}: {report.success_rate:.1%} of {len(report.success)} episodes, Wilson {low:.1%} to {high:.1%}"
    )
    return Measurement(metrics, series, images, (note,))


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the ordinary policy solves hardly anything."""
    values = [value for one in measurements["dp"] for value in one.metrics["success"]]
    success = sum(values) / len(values)
    return None if success >= SOLVED else f"the ordinary policy solves only {success:.0%} of the episodes"


def ship(run: Path, arm: str, training: str, target: Path = SHIPPED) -> None:
    """Store a fine-tuned policy as its difference to the testbed's, for the scales that do not train.

    Args:
        run: Folder of a finished `train`.
        arm: `sdp` or `sdp_constant`.
        training: How it was trained, in words.
        target: Where the package keeps them.
    """
    record = {"trained_from": HOST, "weights": REGIMES[arm], "training": training}
    save_difference(target / arm, StreamingHost.from_pretrained(run / "model"), load_host(HOST), **record)


def _sizes(
    episodes: int, few: int, rounds: int, *, tasks: tuple[int, ...] = TASKS, train_steps: int = 0
) -> dict[str, Any]:
    return {
        "tasks": tasks,
        "episodes": episodes,
        "few": few,
        "rounds": rounds,
        "train_steps": train_steps,
        "video": train_steps == 0 and episodes > 1,
    }


CLAIM = Claim(
    method="streaming-dp",
    paper="Streaming Diffusion Policy: Fast Policy Synthesis with Variable Noise Diffusion Models "
    "(ICRA 2025, arXiv 2406.04806)",
    statement=(
        "A buffer of actions whose noise grows along the horizon replans in N / h network calls instead of N "
        "(100 to 6.7 here) with the success of the diffusion policy that it was converted from."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        Target("milliseconds per replan", "latency", "sdp", "dp", "ratio", 1 / 12, "lower"),
        Target("network calls per replan", "calls", "sdp", "dp", "ratio", 1 / 14, "lower"),
        Target("success", "success", "sdp", "dp", "difference", -0.05, "higher", guard=True),
        Target("success with jumps", "success_disturbed", "sdp", "dp", "difference", 0.0, "higher"),
        Target("success at equal calls an action", "success_few", "sdp", "cold", "difference", 0.0, "higher"),
        Target(
            "success against constant levels",
            "success_few",
            "sdp",
            "sdp_constant",
            "difference",
            0.1,
            "higher",
        ),
    ),
    scales={
        "smoke": Scale((1000,), 300, _sizes(1, 1, 2, tasks=(8,))),
        "quick": Scale((1000,), 300, _sizes(2, 1, 5)),
        "laptop": Scale((1000, 1001, 1002), 1800, _sizes(23, 4, 10)),
        "full": Scale((1000, 1001, 1002), 36_000, _sizes(50, 50, 40, train_steps=20_000)),
    },
    run=run_arm,
    units="episode",
    columns={
        "latency": "ms per replan",
        "latency_p95": "p95 ms",
        "calls": "calls per replan",
        "calls_per_action": "calls per action",
        "success": "success",
        "success_few": "success, first episodes",
        "success_disturbed": "success, discs jump",
        "mode_switches": "mode switches",
    },
    precondition=precondition,
)


def run_claim(*, scale: ScaleName = "quick", out: Path = DEFAULT_OUT, jobs: int | None = None) -> BenchResult:
    """Run the paper's claim: the streaming conversion against its host and its host's fast versions.

    Args:
        scale: smoke, quick, laptop (both with shipped weights) or full (fine-tunes).
        out: Folder of results and report.
        jobs: Processes at a time.
    """
    return bench(methods=["streaming-dp"], scale=scale, out=out, jobs=jobs)
