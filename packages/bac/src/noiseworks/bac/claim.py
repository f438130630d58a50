"""The claim: with every block computed at about a tenth of the denoising steps the policy is six times faster.

On the transformer policy of `tabletop`, whose discs are disturbed: plans with ten updates a block (BAC, block-wise
without bubbling, unified, uniform) against the full 100 steps, with uniform reuse and DDIM at the time that BAC takes.
The same again at five updates, where plans differ most. Everything is made on tuning seeds; the numbers of updates and
of DDIM steps that take BAC's time were measured there too (processor seconds on one thread: 96 and 95 against 96 ms at
ten updates, 54 and 45 against 48 ms at five).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    import numpy as np
    from noiseworks.bac.comparison import Arms
    from noiseworks.bac.profiling import FeatureProfile

HOST, BUBBLE = "testbed:tabletop-transformer", 5
PROFILE_SEED, ERROR_SEED = 11, 12
FIRST_EPISODE, SPREAD = 10_000, 100  # episodes of judging seed s start at 10 000 + 100 (s - 1000)
# Arm -> updates; and the uniform plans and DDIM runs that take as long as BAC at ten and at five updates.
BAC, UNIFORM, DDIM = {"bac": 10, "bac5": 5}, {"uniform": 20, "uniform5": 8}, {"ddim": 15, "ddim5": 8}
TASKS = tuple(range(12))
ARMS = (
    Arm("full", "full, 100 DDPM steps", "baseline"),
    Arm("lean", "full, lean forward pass", "reference"),
    Arm("uniform", "uniform at BAC's time", "baseline"),
    Arm("ddim", "DDIM at BAC's time", "baseline"),
    Arm("ddim3", "3 DDIM steps", "naive"),
    Arm("unified", "unified ACS, 10 updates", "baseline"),
    Arm("block", "block-wise ACS without BUA", "method"),
    Arm("bac", "BAC, 10 updates", "method"),
    Arm("uniform5", "uniform at BAC-5's time", "baseline"),
    Arm("ddim5", "DDIM at BAC-5's time", "baseline"),
    Arm("bac5", "BAC, 5 updates", "method"),
)


@dataclass(frozen=True)
class Shared:
    """What all arms of a seed share.

    Attributes:
        arms: The arms.
        profile: The policy's profile.
        seconds: Seconds of replans by arm.
        wrong: Error of the actions against the full run, by arm and observation.
        first: Seed of the first episode.
    """

    arms: "Arms"
    profile: "FeatureProfile"
    seconds: dict[str, list[float]]
    wrong: "dict[str, np.ndarray]"
    first: int


def prepare(seed: int, context: Context) -> Shared:
    """Profile the policy on tuning seeds, make the plans, and time all arms in turn."""
    import torch
    from noiseworks.bac.comparison import Arms, action_errors, time_replans
    from noiseworks.bac.data import load_observations
    from noiseworks.bac.options import Schedule
    from noiseworks.bac.plan import CachePlan, make_plan
    from noiseworks.bac.profiling import profile
    from noiseworks.kits.policies.hosts import load_host

    sizes = context.settings
    host, count = load_host(context.model or HOST, device=context.device), sizes["profiled"]
    generators = [torch.Generator().manual_seed(PROFILE_SEED + row) for row in range(count)]
    obs = load_observations("tabletop", host, count, PROFILE_SEED)
    found = profile(host, obs, num_steps=sizes["steps"], generator=generators)
    updates = {name: min(m, found.num_steps) for name, m in (BAC | UNIFORM).items()}
    plans = {name: CachePlan.of_updates(found, updates[name]) for name in UNIFORM}
    plans |= {name: make_plan(found, Schedule(updates[name], bubble=BUBBLE)) for name in BAC}
    plain = Schedule(updates["bac"], bubble=0)
    plans |= {"unified": CachePlan.unified(found, plain), "block": make_plan(found, plain)}
    arms = Arms(
        host,
        plans,
        found.num_steps,
        {name: min(n, found.num_steps) for name, n in (DDIM | {"ddim3": 3}).items()},
    )
    held = load_observations("tabletop", host, 2 * count, ERROR_SEED)
    names = [arm.name for arm in ARMS]
    one = {"obs": held["obs"][seed % count][None]}
    seconds = time_replans(arms, names, one, sizes["repeats"])
    first = FIRST_EPISODE + SPREAD * (seed - 1000) if seed >= 1000 else SPREAD * seed % 1000
    return Shared(arms, found, seconds, action_errors(arms, names, held, seed), first)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: time of a replan, error of the actions, success of the episodes."""
    from noiseworks.bac.plots import plot_plan, plot_similarity
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.policies.evaluation import episode_list, evaluate

    metrics: dict[str, Any] = {
        "seconds": shared.seconds[arm],
        "action_error": shared.wrong[arm].tolist(),
    }
    if arm != "lean":  # its actions are the full policy's
        context.progress(0, 1, f"{arm}: episodes")
        tasks = TASKS[-context.settings["tasks"] :]
        listed, seeds = episode_list(tasks, context.settings["episodes"], shared.first)
        env = TabletopBatch(len(listed), disturb=True, max_steps=context.settings["max_steps"])
        with shared.arms.policy(arm, env.num_envs) as policy:
            metrics["success"] = evaluate(policy, env, listed, seeds).success.astype(float).tolist()
    if (plan := shared.arms.plans.get(arm)) is None:
        return Measurement(metrics)
    metrics["share"] = plan.share
    images = {f"{arm}: computed blocks": plot_plan(plan, context.folder / f"plan-{arm}.png")}
    if arm == "bac":
        title = "cosine similarity of block outputs"
        images[title] = plot_similarity(shared.profile, context.folder / "similarity.png")
    bubbled = ", ".join(plan.settings.get("bubbled", ()))
    return Measurement(metrics, images=images, notes=(f"{arm} bubbles {bubbled}.",) if bubbled else ())


def _sizes(
    episodes: int,
    repeats: int,
    profiled: int,
    tasks: int = 12,
    steps: int | None = None,
    max_steps: int = 100,
) -> dict[str, Any]:
    counts = {"episodes": episodes, "repeats": repeats, "profiled": profiled, "tasks": tasks}
    return counts | {"steps": steps, "max_steps": max_steps}


CLAIM = Claim(
    method="bac",
    version=2,
    paper="Block-wise Adaptive Caching for Accelerating Diffusion Policy (ICLR 2026, arXiv 2506.13456)",
    statement=(
        "Computing each block of a transformer diffusion policy at 10 of 100 denoising steps of its own, with "
        "bubbling, makes it several times faster at the same success, and better than reusing all blocks at once or "
        "taking fewer steps for as long (paper: 3.4 times on a GPU, 0.98 against 0.66 of uniform reuse on its hardest "
        "task; here at least 4 times end to end on a CPU, within 2 points, 2 points above both at five updates)."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        at_most("seconds", "bac", "full", ratio=1 / 4),
        no_worse("success", "bac", "full", by=0.02, name="success within 2 points"),
        no_worse("success", "bac", ("uniform", "ddim"), by=0.02, name="success at equal time, 10 updates"),
        at_least(
            "success",
            "bac5",
            "uniform5",
            difference=0.02,
            name="success over uniform at equal time, 5 updates",
        ),
        at_least(
            "success", "bac5", "ddim5", difference=0.02, name="success over DDIM at equal time, 5 updates"
        ),
        at_most("seconds", "bac5", "uniform5", ratio=1.1, name="time of uniform, 5 updates", guard=True),
    ),
    scales={
        "smoke": Scale((500,), 300, _sizes(1, 1, 2, tasks=1, steps=24, max_steps=8)),
        "quick": Scale((500,), 240, _sizes(1, 2, 3, tasks=6)),
        "laptop": Scale((1000, 1001, 1002), 1800, _sizes(17, 7, 8)),
        "full": Scale((1000, 1001, 1002), 7200, _sizes(50, 15, 16)),
    },
    prepare=prepare,
    model_kind="policy",
    run=run,
    units="episode",
    columns={
        "success": "success, disturbed",
        "seconds": "seconds a replan",
        "share": "blocks computed",
        "action_error": "error of actions",
    },
    preconditions=(Floor("full", "success", 0.3, "the full policy solves only {:.0%} of the episodes"),),
)
