"""The claim: with every block computed at about a tenth of the denoising steps the policy is six times faster.

On the transformer policy of `tabletop`: the eager host with 100 ancestral steps against plans with ten updates a
block (uniform, unified, block-wise with and without bubbling), next to a TeaCache-like rule, ten DDIM steps and
a cold truncation. Plans and thresholds are made on demonstrations of tuning seeds; all arms share initial
states and noise seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noiseworks.bac.comparison import ARMS as NAMES
from noiseworks.bac.comparison import Arms, action_errors, make_plans, time_replans
from noiseworks.bac.data import TABLETOP, load_observations
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.plots import plot_plan, plot_similarity
from noiseworks.bac.profiling import FeatureProfile, profile
from noiseworks.bac.report import ErrorReport, error_report
from noiseworks.bac.teacache import teacache_threshold
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, Target
from noiseworks.bench.testbeds.tabletop import TabletopBatch
from noiseworks.kits.policies.evaluation import EvaluationReport, episode_list, evaluate
from noiseworks.kits.policies.hosts import load_host
from noiseworks.kits.policies.native import NativePolicy
from torch import Tensor

HOST = "testbed:tabletop-transformer"
UPDATES, BUBBLE, PROFILED = 10, 5, 8
PROFILE_SEED, ERROR_SEED = 11, 12  # below 1000: nothing is made on judging seeds
FIRST_EPISODE, SPREAD = 10_000, 100  # episodes of judging seed s start at 10 000 + 100 (s - 1000)
SOLVED = 0.3  # success of the full policy below which there is nothing to keep
TASKS = tuple(range(12))
ARMS = (
    Arm("full", "full, 100 DDPM steps", "baseline"),
    Arm("lean", "full, lean code", "reference"),
    Arm("ddim", "10 DDIM steps", "baseline"),
    Arm("truncated", "last 10 DDPM steps from noise", "naive"),
    Arm("teacache", "TeaCache-like, 10 updates", "baseline"),
    Arm("uniform", "uniform, every 10th step", "baseline"),
    Arm("unified", "unified ACS, 10 updates", "baseline"),
    Arm("adjacent", "block-wise, printed objective", "reference"),
    Arm("block", "block-wise ACS without BUA", "method"),
    Arm("bac", "BAC, 10 updates", "method"),
)
# Their success is the full policy's, or far from it; their time and the error of their actions say enough.
WITHOUT_EPISODES = ("lean", "adjacent")


@dataclass(frozen=True)
class Sizes:
    """What all arms of a run share.

    Attributes:
        name: The policy's name.
        device: Where it runs.
        profiled: Observations of the profile.
        steps: K, or None for all steps of the training.
        updates: M.
    """

    name: str
    device: str
    profiled: int
    steps: int | None
    updates: int


@cache
def model(name: str, device: str) -> NativePolicy:
    """Return the policy, loaded once a process."""
    return load_host(name, device=device)


def observed(sizes: Sizes, count: int, seed: int) -> dict[str, Tensor]:
    """Return observations of demonstrations, [count, To, Do]."""
    return load_observations(TABLETOP, model(sizes.name, sizes.device), count, seed)


@cache
def profiled(sizes: Sizes) -> FeatureProfile:
    """Return the policy's profile."""
    obs = observed(sizes, sizes.profiled, PROFILE_SEED)
    generators = [torch.Generator().manual_seed(PROFILE_SEED + row) for row in range(sizes.profiled)]
    return profile(model(sizes.name, sizes.device), obs, num_steps=sizes.steps, generator=generators)


@cache
def arms_of(sizes: Sizes) -> Arms:
    """Return everything that the arms need, made on tuning seeds."""
    host, found = model(sizes.name, sizes.device), profiled(sizes)
    obs, generator = (
        observed(sizes, sizes.profiled, PROFILE_SEED),
        torch.Generator().manual_seed(PROFILE_SEED),
    )
    threshold = teacache_threshold(host, obs, sizes.updates, num_steps=sizes.steps, generator=generator)
    plans = make_plans(found, sizes.updates, BUBBLE)
    return Arms(host, plans, sizes.updates, found.num_steps, threshold)


@cache
def timed(sizes: Sizes, repeats: int, seed: int) -> dict[str, list[float]]:
    """Return seconds of replans for one environment, all arms in turn."""
    obs = observed(sizes, sizes.profiled, ERROR_SEED)["obs"][seed % sizes.profiled]
    return time_replans(arms_of(sizes), NAMES, {"obs": obs[None]}, repeats)


@cache
def wrong(sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """Return the error of the actions against the full run, by arm and observation."""
    return action_errors(arms_of(sizes), NAMES, observed(sizes, 2 * sizes.profiled, ERROR_SEED), seed)


def surge(sizes: Sizes, arm: str) -> ErrorReport:
    """Return the errors of a plan's block outputs."""
    arms, obs = arms_of(sizes), observed(sizes, 2, ERROR_SEED)
    return error_report(arms.host, arms.plans[arm], obs, seed=ERROR_SEED, num_steps=sizes.steps)


def episodes(sizes: Sizes, arm: str, tasks: int, per_task: int, seed: int) -> EvaluationReport:
    """Run an arm's episodes of the last `tasks` tasks, all of them at once."""
    listed, seeds = episode_list(TASKS[-tasks:], per_task, FIRST_EPISODE + SPREAD * (seed - 1000))
    env = TabletopBatch(len(listed))
    with arms_of(sizes).policy(arm, env.num_envs) as policy:
        return evaluate(policy, env, listed, seeds)


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed: time of a replan, error of the actions, success of the episodes."""
    settings = context.settings
    shared = (settings["profiled"], settings["steps"], settings["updates"])
    sizes = Sizes(context.model or HOST, context.device, *shared)
    arms = arms_of(sizes)
    context.progress(0, 3, f"{arm}: replans")
    metrics: dict[str, Any] = {
        "seconds": timed(sizes, settings["repeats"], seed)[arm],
        "action_error": wrong(sizes, seed)[arm].tolist(),
    }
    context.progress(1, 3, f"{arm}: block outputs")
    found = arms.plans.get(arm)
    if found is not None:
        metrics |= plan_figures(found, surge(sizes, arm))
    context.progress(2, 3, f"{arm}: episodes")
    if arm not in WITHOUT_EPISODES:
        report = episodes(sizes, arm, settings["tasks"], settings["episodes"], seed)
        metrics["success"] = report.success.astype(float).tolist()
    drawn = pictures(arm, found, context.folder, profiled(sizes))
    return Measurement(metrics, images=drawn, notes=notes(arm, arms))


def plan_figures(plan: CachePlan, errors: ErrorReport) -> dict[str, float]:
    """Return a plan's share of computed blocks and its mean errors, for feed-forward blocks at updates apart."""
    deep = [i for i, kind in enumerate(plan.kinds) if kind == "ff"]
    return {
        "share": plan.share,
        "reuse_error": float(errors.reuse_error.mean()),
        "ff_update_error": float(errors.update_error[deep].mean()),
    }


def pictures(arm: str, plan: CachePlan | None, folder: Path, found: FeatureProfile) -> dict[str, Path]:
    """Draw an arm's plan, and with the method's the similarities that it was made from."""
    if plan is None:
        return {}
    drawn = {f"{arm}: computed blocks": plot_plan(plan, folder / f"plan-{arm}.png")}
    if arm == "bac":
        drawn["cosine similarity of block outputs"] = plot_similarity(found, folder / "similarity.png")
    return drawn


def notes(arm: str, arms: Arms) -> tuple[str, ...]:
    """Return what has to be known to read an arm's figures."""
    if arm == "full":
        return (
            "Seconds are those of one replan for one environment, arms in turn. The full policy runs as it is, "
            "with the diffusers scheduler; the arm `full, lean code` computes every block too, but with the cached "
            "arms' own forward pass and sampling loop: what is gained over it is gained by reuse.",
        )
    if arm == "bac":
        bubbled = ", ".join(arms.plans["bac"].settings["bubbled"])
        return (f"Bubbling blocks: {bubbled}. Block computations left: {arms.plans['bac'].share:.1%}.",)
    return ()


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the full policy solves so little that nothing can be lost."""
    values = [value for one in measurements["full"] for value in one.metrics["success"]]
    success = sum(values) / len(values)
    return None if success >= SOLVED else f"the full policy solves only {success:.0%} of the episodes"


def _settings(episodes: int, repeats: int, profiled: int = PROFILED, **changes: int) -> dict[str, Any]:
    every = {"tasks": len(TASKS), "steps": None, "updates": UPDATES}
    return {"episodes": episodes, "repeats": repeats, "profiled": profiled, **every, **changes}


CLAIM = Claim(
    method="bac",
    paper="Block-wise Adaptive Caching for Accelerating Diffusion Policy (ICLR 2026, arXiv 2506.13456)",
    statement=(
        "Computing each block of a transformer diffusion policy at 10 of 100 denoising steps of its own, with "
        "bubbling, makes it several times faster at the same success (paper: 3.4 times on a GPU; here at least "
        "6 times end to end on a CPU, within 2 points)."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        Target("seconds a replan", "seconds", "bac", "full", "ratio", 1 / 6, "lower"),
        Target(
            "success within 2 points", "success", "bac", "full", "difference", -0.02, "higher", guard=True
        ),
    ),
    scales={
        "smoke": Scale((1000,), 300, _settings(1, 1, 2, tasks=2, steps=12, updates=3)),
        "quick": Scale((1000,), 240, _settings(1, 2, 3, tasks=6)),
        "laptop": Scale((1000, 1001, 1002), 1800, _settings(17, 7)),
        "full": Scale((1000, 1001, 1002), 7200, _settings(50, 15, 16)),
    },
    run=run_arm,
    units="episode",
    columns={
        "success": "success",
        "seconds": "seconds a replan",
        "share": "blocks computed",
        "action_error": "error of actions",
        "reuse_error": "error, reused",
        "ff_update_error": "error, feed-forward updates",
    },
    precondition=precondition,
)
