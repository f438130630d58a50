"""The claim: three network calls a replan, in closed loop, do what a hundred from noise do in chunks.

On the U-Net policy of `tabletop`, tasks with a gripper: the full sampler in chunks of eight actions, DDIM with ten
steps, and the same three steps from fresh noise, against real-time iteration; and, on fewer episodes, DDIM at
every step, the paper's long list with a snapped gripper, and discs that jump. All arms run on the same loop with the
same table of modulations, so what is gained is the method's.
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
from noiseworks.rti_dp.options import STEPS

if TYPE_CHECKING:
    import numpy as np
    from noiseworks.kits.policies.evaluation import EvaluationReport
    from noiseworks.kits.policies.protocols import DenoiserHost
    from noiseworks.kits.policies.replanning import ReplanningPolicy

HOST = "testbed:tabletop-unet"
TASKS = (0, 1, 2, 3, 4, 5, 11)  # those with a gripper
LONG = (22, 20, 18, 16, 14, 12, 10, 8, 5, 3, 2, 1, 0)
ARMS = (
    Arm("full", "100 steps, chunks of 8", "baseline"),
    Arm("ddim", "DDIM-10, chunks of 8", "baseline"),
    Arm("ddim1", "DDIM-10, every action", "baseline"),
    Arm("cold", "3 steps from fresh noise", "naive"),
    Arm("rti", "RTI, 3 steps", "method"),
    Arm("clip13", "RTI, 13 steps, gripper snapped", "method"),
)
JUDGED = ("full", "rti")  # arms that run all episodes; the others run a part of them


@dataclass
class Shared:
    """What the arms of a seed share: the policy, the seed, and the seconds of replans of each arm."""

    host: "DenoiserHost"
    seed: int
    seconds: dict[str, list[float]]


def prepare(seed: int, context: Context) -> Shared:
    """Load the policy and time replans, arms in turn."""
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.policies.evaluation import time_in_turns
    from noiseworks.kits.policies.hosts import load_host

    host = load_host(context.model or HOST, device=context.device)
    context.progress(0, 3, "latency")
    policies = {arm.name: make(arm.name, host, 1) for arm in ARMS}
    turns = context.settings["turns"]
    return Shared(host, seed, time_in_turns(policies, TabletopBatch(1), turns=turns, seed=1000 * seed))


def make(arm: str, host: "DenoiserHost", num_envs: int) -> "ReplanningPolicy":
    """Return the policy of an arm."""
    from noiseworks.kits.policies.replanning import DiffusionPolicy
    from noiseworks.rti_dp.baselines import TruncatedPolicy
    from noiseworks.rti_dp.policy import RTIPolicy

    if arm == "cold":
        return TruncatedPolicy(host, STEPS, num_envs=num_envs)
    if arm == "rti":
        return RTIPolicy(host, STEPS, num_envs=num_envs)
    if arm == "clip13":
        return RTIPolicy(host, LONG, discrete="2:clip:10", num_envs=num_envs)
    own: dict[str, Any] = {} if arm == "full" else {"solver": "ddim", "num_inference_steps": 10}
    own |= {"n_action_steps": 1} if arm == "ddim1" else {}
    return DiffusionPolicy(host, cache=True, num_envs=num_envs, **own)


def episodes_of(seed: int, size: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Return a seed's episodes, `size` of each task; fewer are the first of more, in the same order."""
    import numpy as np
    from noiseworks.kits.policies.evaluation import episode_list

    tasks, seeds = episode_list(TASKS, size, 1000 * seed)
    order = np.lexsort((tasks, seeds))
    return tasks[order], seeds[order]


def solved(
    arm: str, shared: Shared, size: int, max_steps: int, *, disturb: bool = False
) -> tuple["EvaluationReport", "ReplanningPolicy"]:
    """Return an arm's episodes, all of them in one batch."""
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.policies.evaluation import evaluate

    chosen = episodes_of(shared.seed, size)
    tables = TabletopBatch(len(chosen[0]), disturb=disturb, max_steps=max_steps)
    policy = make(arm, shared.host, tables.num_envs)
    return evaluate(policy, tables, *chosen, record=True), policy


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on one seed: success, calls and smoothness, success under disturbance, and latency."""
    from noiseworks.bench.testbeds.tabletop import film, jerk, mode_switches
    from noiseworks.kits.policies.video import write_video
    from noiseworks.rti_dp.policy import RTIPolicy

    settings = context.settings
    milliseconds = [1e3 * value for value in shared.seconds[arm]]
    if arm in settings.get("timed_only", ()):
        return Measurement({"milliseconds": milliseconds}, notes=(f"{arm} is only timed at this scale.",))
    context.progress(1, 3, f"{arm}: episodes")
    size = settings["episodes" if arm in JUDGED else "few"]
    report, policy = solved(arm, shared, size, settings["max_steps"])
    few = len(TASKS) * settings["few"]
    success = report.success.astype(float).tolist()
    metrics: dict[str, Any] = {
        "success_few": success[:few],
        "calls_per_replan": report.nfe_per_replan,
        "calls_per_action": report.nfe_per_action,
        "switches": mode_switches(report.observations[..., :2], report.actions)[:few].astype(float).tolist(),
        "jerk": jerk(report.actions)[:few].tolist(),
        "milliseconds": milliseconds,
    }
    if arm in JUDGED:
        metrics["success"] = success
        context.progress(2, 3, f"{arm}: discs that jump")
        disturbed, _ = solved(arm, shared, settings["few"], settings["max_steps"], disturb=True)
        metrics["success_disturbed"] = disturbed.success.astype(float).tolist()
    notes = []
    if isinstance(policy, RTIPolicy):
        notes.append(f"{arm}: steps {list(policy.table.timesteps)}, {policy.restarts} restarts")
    images = {}
    if settings["film"] and arm in JUDGED:
        path = context.folder / f"{arm}.webp"
        write_video(film(report.observations[: len(TASKS)]), path)
        images[f"{arm}: one episode of each task"] = path
    return Measurement(metrics, images=images, notes=notes)


def sizes(episodes: int, few: int, turns: int, max_steps: int = 100, film: bool = True) -> dict[str, Any]:
    """Return settings; `episodes` and `few` count episodes of each task."""
    return {"episodes": episodes, "few": few, "turns": turns, "max_steps": max_steps, "film": film}


CLAIM = Claim(
    method="rti-dp",
    paper="Real-Time Iteration Scheme for Diffusion Policy (IROS 2025, arXiv 2508.05396)",
    statement=(
        "Starting each replan of a trained diffusion policy from its last plan takes 3 network calls a replan instead "
        "of 100, so that every action can be planned anew, at comparable success (paper: three steps on most tasks)."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        at_most("milliseconds", "rti", "full", ratio=1 / 25, name="seconds of a replan"),
        no_worse("success", "rti", "full", by=0.03),
        at_least("success_few", "rti", "cold", difference=0.0, name="against fresh noise"),
        at_least("success_disturbed", "rti", "full", difference=0.0, name="success, disturbed"),
    ),
    scales={
        "smoke": Scale((500,), 300, sizes(1, 1, 1, max_steps=3, film=False)),
        "quick": Scale(
            # Arms without a target are only timed: network calls take the time, and these make the most of them.
            (500,),
            300,
            sizes(2, 1, 2, max_steps=56, film=False) | {"timed_only": ("ddim1", "clip13")},
        ),
        "laptop": Scale((1000, 1001, 1002), 1500, sizes(29, 3, 8)),
        "full": Scale((1000, 1001, 1002, 1003, 1004), 36000, sizes(50, 50, 50)),
    },
    prepare=prepare,
    model_kind="policy",
    run=run,
    preconditions=(Floor("full", "success", 0.3, "the full sampler solves only {:.0%} of the episodes"),),
    units="episode",
    columns={
        "success": "success",
        "success_few": "success, part of the episodes",
        "success_disturbed": "success, discs jump",
        "calls_per_replan": "network calls a replan",
        "calls_per_action": "network calls an executed action",
        "milliseconds": "milliseconds a replan",
        "switches": "changes of side",
        "jerk": "jerk",
    },
    version=2,
)
