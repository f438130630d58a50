"""The claim: a converted, briefly fine-tuned policy replans at every step in a fifteenth of the network calls.

On `tabletop` the ordinary policy, its fast versions and the streaming conversion act from the same initial
states, undisturbed and with discs that jump, all on the same loop with tables of modulations. Seconds a replan are
measured in turn, with one environment.
"""

from dataclasses import dataclass
from pathlib import Path
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
from noiseworks.streaming_dp.commands import TRIALS
from noiseworks.streaming_dp.levels import DEFAULT_WEIGHTS

if TYPE_CHECKING:
    from noiseworks.kits.policies.evaluation import EvaluationReport
    from noiseworks.kits.policies.protocols import DenoiserHost
    from noiseworks.kits.policies.replanning import ReplanningPolicy

HOST = "testbed:tabletop-unet"
SHIPPED = Path(__file__).parent / "shipped"
# Regimes of the two fine-tunings: the paper's mixture, and the ablation without unequal levels.
REGIMES = {"sdp": DEFAULT_WEIGHTS, "sdp_constant": (1.0, 0.0, 0.0, 0.0)}
# Streams start from rest with an open gripper; zeros would half close it. Chosen on seeds below 1000.
REST = (0.0, 0.0, -1.0)
SIDE = ("cold", "sdp_constant")  # arms of side comparisons, with fewer episodes
ARMS = (
    Arm("dp", "DDPM, 100 calls, 8 actions", "baseline"),
    Arm("ddim", "DDIM, 10 calls, 8 actions", "baseline"),
    Arm("cold", "DDIM, 7 calls, every step", "naive"),
    Arm("sdp_constant", "streaming, constant levels in training", "naive"),
    Arm("sdp", "streaming, converted and fine-tuned", "method"),
)


@dataclass
class Shared:
    """What the arms of a seed share: the ordinary policy, both tuned ones, the seed, seconds of each arm's replans."""

    host: "DenoiserHost"
    tuned: "dict[str, DenoiserHost]"
    seed: int
    seconds: dict[str, list[float]]

    def policy(self, arm: str, num_envs: int) -> "ReplanningPolicy":
        """Return the policy of an arm."""
        from noiseworks.kits.policies.replanning import DiffusionPolicy
        from noiseworks.streaming_dp.policy import StreamingPolicy

        if arm in REGIMES:
            own = {"buffer_init": "constant", "constant": REST}
            return StreamingPolicy(self.tuned[arm], num_envs=num_envs, **own)
        fast: dict[str, Any] = {"solver": "ddim", "num_inference_steps": 10 if arm == "ddim" else 7}
        own = {} if arm == "dp" else fast | ({"n_action_steps": 1} if arm == "cold" else {})
        return DiffusionPolicy(self.host, cache=True, num_envs=num_envs, **own)


def prepare(seed: int, context: Context) -> Shared:
    """Load the policies (or fine-tune them here, at the scale that trains), and time replans, arms in turn."""
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.policies.evaluation import time_in_turns
    from noiseworks.kits.policies.hosts import load_host

    settings = context.settings
    host = load_host(context.model or HOST, device=context.device)
    tuned = {arm: tune(arm, host, settings["train_steps"], context) for arm in REGIMES}
    shared = Shared(host, tuned, seed, {})
    policies = {arm.name: shared.policy(arm.name, 1) for arm in ARMS}
    # The first cycles fill the streams' tables.
    warmup = settings.get("warmup", 4)
    shared.seconds = time_in_turns(policies, TabletopBatch(1), turns=settings["rounds"], warmup=warmup)
    return shared


def tune(arm: str, host: "DenoiserHost", steps: int, context: Context) -> "DenoiserHost":
    """Return a streaming policy: as shipped (0 steps), which belongs to the testbed's policy, or trained here."""
    from noiseworks.kits.policies.chunking import windows
    from noiseworks.kits.policies.data import load_episodes
    from noiseworks.streaming_dp.difference import load_difference
    from noiseworks.streaming_dp.hosts import convert
    from noiseworks.streaming_dp.options import TrainConfig
    from noiseworks.streaming_dp.training import train

    if steps == 0:
        return load_difference(SHIPPED / arm, host)
    made, device = convert(host, n_action_steps=1), context.device.split(":")[0]
    table = windows(load_episodes("testbed:tabletop", needs="streaming-dp", episodes=200), made.chunk)
    config = TrainConfig(max_steps=steps, weights=REGIMES[arm], device=device)
    return train(made, table, context.folder.absolute() / arm, config, progress=False)


def episodes(
    arm: str, shared: Shared, context: Context, count: int, *, disturb: bool = False
) -> "EvaluationReport":
    """Return an arm's episodes; all arms of a seed start in the same states."""
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.policies.evaluation import episode_list, evaluate

    tasks, seeds = episode_list(context.settings["tasks"], count, 100 * shared.seed)
    env = TabletopBatch(len(tasks), disturb=disturb, max_steps=context.settings["max_steps"])
    return evaluate(shared.policy(arm, env.num_envs), env, tasks, seeds, record=True)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on one seed; arms of the side comparisons act in the first episodes of each task only."""
    from noiseworks.bench.testbeds.tabletop import mode_switches
    from noiseworks.kits.policies.video import write_video
    from noiseworks.streaming_dp.pictures import record_stream

    settings = context.settings
    context.progress(0, 2, f"{arm}: episodes")
    report = episodes(arm, shared, context, settings["few" if arm in SIDE else "episodes"])
    first = report.seeds < 100 * shared.seed + settings["few"]
    switches = mode_switches(report.observations[..., :2], report.actions)
    metrics: dict[str, Any] = {
        "latency": [1e3 * seconds for seconds in shared.seconds[arm]],
        "calls": report.nfe_per_replan,
        "calls_per_action": report.nfe_per_action,
        "success_few": report.success[first].astype(float).tolist(),
        "mode_switches": switches[first].astype(float).tolist(),
    }
    if arm not in SIDE:
        context.progress(1, 2, f"{arm}: disturbed episodes")
        metrics["success"] = report.success.astype(float).tolist()
        disturbed = episodes(arm, shared, context, settings["few"], disturb=True)
        metrics["success_disturbed"] = disturbed.success.astype(float).tolist()
    images = {}
    if arm == "sdp" and settings["video"]:
        images["the paths in the buffers, fainter where noisier"] = video = context.folder / "stream.webp"
        shown = settings["tasks"][:4]
        write_video(record_stream(shared.policy(arm, len(shown)), shown, 100 * shared.seed), video)
    return Measurement(metrics, images=images)


def sizes(
    episodes: int,
    few: int,
    rounds: int,
    *,
    tasks: tuple[int, ...] = TRIALS.tasks,
    max_steps: int = 100,
    train_steps: int = 0,
) -> dict[str, Any]:
    """Return settings; `episodes` and `few` count episodes of each task."""
    found = {"tasks": tasks, "episodes": episodes, "few": few, "rounds": rounds, "max_steps": max_steps}
    return found | {"train_steps": train_steps, "video": train_steps == 0 and episodes > 1}


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
        at_most("latency", "sdp", "dp", ratio=1 / 12, name="milliseconds per replan"),
        at_most("calls", "sdp", "dp", ratio=1 / 14, name="network calls per replan"),
        no_worse("success", "sdp", "dp", by=0.05),
        at_least("success_disturbed", "sdp", "dp", difference=0.0, name="success with jumps"),
        at_least("success_few", "sdp", "cold", difference=0.0, name="success at equal calls an action"),
        at_least(
            "success_few", "sdp", "sdp_constant", difference=0.1, name="success against constant levels"
        ),
    ),
    scales={
        "smoke": Scale((500,), 300, sizes(1, 1, 1, tasks=(8,), max_steps=3) | {"warmup": 1}),
        "quick": Scale((500,), 300, sizes(2, 1, 2, max_steps=56) | {"video": False}),
        "laptop": Scale((1000, 1001, 1002), 1800, sizes(23, 4, 10)),
        "full": Scale((1000, 1001, 1002), 36_000, sizes(50, 50, 40, train_steps=20_000)),
    },
    prepare=prepare,
    run=run,
    preconditions=(Floor("dp", "success", 0.2, "the ordinary policy solves only {:.0%} of the episodes"),),
    units="episode",
    columns={
        "latency": "ms per replan",
        "calls": "calls per replan",
        "calls_per_action": "calls per action",
        "success": "success",
        "success_few": "success, first episodes",
        "success_disturbed": "success, discs jump",
        "mode_switches": "mode switches",
    },
    version=2,
)
