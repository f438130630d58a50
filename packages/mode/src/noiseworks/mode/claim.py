"""The claim: cached experts run faster and change nothing; a sparse model equals a dense one of its size.

On the 12 tasks of `tabletop`, with states and text-embedding goals: a MoDE whose experts are cached or routed, a dense
model with as many parameters in all, and one with as many active parameters, trained alike.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, bench
from noiseworks.bench.testbeds.tabletop import TabletopBatch
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.mode.commands import largest_difference
from noiseworks.mode.flops import denoiser_flops
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.network import Condition
from noiseworks.mode.pictures import draw_usage
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.routing import usage_information
from noiseworks.mode.shipped import SHIPPED
from noiseworks.mode.timing import replan_times

TASKS = range(12)
BATCHES = (1, 7, 64)
LEAST_SUCCESS = 0.1  # of the dense model, below which there is nothing to compare
MODEL_OF = {"routed": "mode", "cached": "mode", "dense_small": "dense-small", "dense_large": "dense-large"}


@cache
def model_of(arm: str, root: Path, device: str) -> MoDEModel:
    """Return an arm's model, loaded once a process; cached and routed arms share one."""
    return MoDEModel.from_pretrained(root / MODEL_OF[arm]).to(device)


def policy_of(arm: str, root: Path, device: str, num_envs: int = 1) -> EDMPolicy:
    """Return an arm's policy, with its cache where it has one."""
    policy = EDMPolicy(model_of(arm, root, device), num_envs=num_envs)
    if arm == "cached":
        policy.cache_experts(10)
    return policy


@cache
def episodes_of(arm: str, root: Path, device: str, per_task: int, seed: int) -> EvaluationReport:
    """Return the episodes of an arm, all at once so that they replan together."""
    tasks, seeds = episode_list(TASKS, per_task, 1000 * seed)
    tables = TabletopBatch(len(seeds))
    return evaluate(policy_of(arm, root, device, len(seeds)), tables, tasks, seeds)


@cache
def times_of(root: Path, device: str, repeats: int) -> Mapping[str, list[float]]:
    """Return milliseconds of replans at batch size 1, all arms in turns on the same machine."""
    policies = {arm: policy_of(arm, root, device) for arm in MODEL_OF}
    times = replan_times(policies, 1, repeats)
    return {arm: [1000 * t for t in found] for arm, found in times.items()}


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on a seed's episodes."""
    root = Path(context.model) if context.model else SHIPPED
    per_task, repeats = context.settings["episodes"], context.settings["replans"]
    context.progress(0, 2, f"{arm}: timing")
    times = times_of(root, context.device, repeats)[arm]
    context.progress(1, 2, f"{arm}: episodes")
    report = episodes_of(arm, root, context.device, per_task, seed)
    config = model_of(arm, root, context.device).config
    metrics: dict[str, float | Sequence[float]] = {
        "success": report.success.astype(float).tolist(),
        "milliseconds": times,
        "megaflops": denoiser_flops(config, cached=arm == "cached") / 1e6,
        "parameters": sum(p.numel() for p in model_of(arm, root, context.device).denoiser.parameters()) / 1e6,
    }
    if config.dense:
        return Measurement(metrics=metrics)
    return _sparse(arm, seed, root, context, metrics)


def _sparse(arm: str, seed: int, root: Path, context: Context, metrics: dict) -> Measurement:
    """Add how exact and how often hit the cache is, which experts work when, and a picture of it."""
    policy = policy_of(arm, root, context.device)
    difference = misses = calls = 0.0
    if arm == "cached":
        for batch in BATCHES:
            cond = start_conditions(policy.model, batch, seed)
            difference = max(difference, largest_difference(policy, batch, seed, cond))
            policy.plan(cond, None, torch.Generator().manual_seed(batch), batch)
        found = policy.cache.report()
        misses, calls = found.misses, found.hits + found.misses
    usage = policy.expert_usage()
    bits = usage_information(usage)
    metrics |= {"difference": difference, "misses": misses, "bits": float(bits.mean())}
    if arm == "routed":
        return Measurement(metrics=metrics)
    picture = draw_usage(usage, policy.sigmas[:-1], context.folder / "usage.png")
    share = usage.mean(dim=(0, 1)).tolist()
    notes = [
        f"the cache answered {calls - misses:.0f} of {calls:.0f} calls at batch sizes {', '.join(map(str, BATCHES))}",
        f"bits between noise level and expert by layer: {', '.join(f'{b:.2f}' for b in bits.tolist())}",
        f"share of each expert: {', '.join(f'{s:.0%}' for s in share)}",
    ]
    return Measurement(metrics=metrics, images={"experts by noise level": picture}, notes=notes)


@torch.no_grad()
def start_conditions(model: MoDEModel, batch: int, seed: int) -> Condition:
    """Return the conditions of start states of all tasks in turn."""
    tables = TabletopBatch(batch)
    rows = np.arange(batch)
    tables.reset(rows, rows % len(TASKS), 1000 * seed + rows)
    obs = torch.from_numpy(tables.observe()["obs"])[:, None]
    return model.encode({"obs": obs.to(model.denoiser.pos_emb.device)})


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the dense model solves nearly nothing."""
    success = float(np.mean([v for m in measurements["dense_large"] for v in m.metrics["success"]]))
    if success < LEAST_SUCCESS:
        return f"the dense model of equal size solves {success:.0%} of the episodes: too few to compare on"
    return None


CLAIM = Claim(
    method="mode",
    paper=(
        "Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers for Multitask Learning, "
        "ICLR 2025, arXiv 2412.12953"
    ),
    statement=(
        "Experts that are routed by the noise level can be cached before inference: exact, always hit, and faster; "
        "the sparse model does as well as a dense one of equal size at about half its operations (paper: LIBERO-90 "
        "0.91, 12 against 15 ms at batch 1, 361 against 5,772 GFLOPs at batch 512)."
    ),
    testbed="tabletop",
    arms=(
        Arm("dense_small", "dense, same active parameters", "naive"),
        Arm("dense_large", "dense, same parameters in all", "baseline"),
        Arm("routed", "MoDE, routed in every call", "baseline"),
        Arm("cached", "MoDE, cached experts", "method"),
    ),
    targets=(
        Target(
            "replan latency at batch 1, cached", "milliseconds", "cached", "routed", "ratio", 0.7, "lower"
        ),
        Target(
            "largest difference of a cached call",
            "difference",
            "cached",
            "routed",
            "difference",
            1e-6,
            "lower",
            guard=True,
        ),
        Target("cache misses", "misses", "cached", "routed", "difference", 0.0, "lower", guard=True),
        Target(
            "success against the dense model of equal size",
            "success",
            "cached",
            "dense_large",
            "difference",
            -0.03,
            "higher",
            guard=True,
        ),
        Target(
            "success against equal active parameters",
            "success",
            "cached",
            "dense_small",
            "difference",
            -0.01,
            "higher",
            guard=True,
        ),
        Target(
            "operations of a call", "megaflops", "cached", "dense_large", "ratio", 0.6, "lower", guard=True
        ),
    ),
    scales={
        "smoke": Scale((1000,), 120, {"episodes": 1, "replans": 3}),
        "quick": Scale((1000,), 180, {"episodes": 4, "replans": 20}),
        "laptop": Scale((1000, 1001, 1002), 1200, {"episodes": 17, "replans": 60}),
        "full": Scale((1000, 1001, 1002), 7200, {"episodes": 100, "replans": 200}),
    },
    run=run_arm,
    units="episode",
    columns={
        "success": "success",
        "milliseconds": "ms a replan, batch 1",
        "megaflops": "MFLOPs a call",
        "parameters": "parameters, million",
        "difference": "largest |cached - routed|",
        "misses": "cache misses",
        "bits": "bits, noise and expert",
    },
    precondition=precondition,
)


def run_claim(*, scale: ScaleName = "quick", out: Path = DEFAULT_OUT, jobs: int | None = None) -> BenchResult:
    """Run the paper's claim on the shipped models: cached against routed experts, sparse against dense.

    Args:
        scale: smoke, quick, laptop (612 episodes an arm) or full (with --model in `noiseworks bench`: a folder with the
            models mode, dense-large and dense-small).
        out: Folder of results and report.
        jobs: Processes at a time.
    """
    return bench(methods=["mode"], scale=scale, out=out, jobs=jobs)
