"""The claim: five late steps from a draft plan as well as a hundred from noise, in an eighth of the time.

On the maze: data half expert, half poor; sparse rewards; the same networks, candidates, guidance and episodes. The
networks were trained once; seeds draw episodes and noise.
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
    from noiseworks.trajectory_diffuser.options import Planning
    from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner
    from numpy import ndarray

LAYOUT, DATA, STEPS = "umaze", "maze:umaze-expert+medium", 5
DATA_SEED, FIRST_EPISODE, EXECUTE, CANDIDATES, GUIDANCE = 0, 200_000, 6, 4, 1.1
PACKAGE = "noiseworks.trajectory_diffuser"
TOP_STEP = 0.3 * 1.1  # the longest step along an axis, and a tenth for rounding


@dataclass
class Shared:
    """The planner, the one whose draft model has no causal mask, and windows of unseen episodes."""

    planner: "TrajectoryPlanner"
    unmasked: "TrajectoryPlanner"
    unseen: dict[str, Any]
    seed: int


def prepare(seed: int, context: Context) -> Shared:
    """Load the planner and the draft model without a mask that the package ships, or train them."""
    from noiseworks.bench import shipped
    from noiseworks.kits.rl.options import Recorded
    from noiseworks.kits.rl.sources import load_data
    from noiseworks.trajectory_diffuser.options import Architecture, Fitting
    from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner
    from noiseworks.trajectory_diffuser.training import fit_planner, make_planner, windows_of

    sizes = context.settings
    unseen = load_data(Recorded(DATA, 2_000, DATA_SEED + 1), needs="trajectory-diffuser")
    if sizes["shipped"] and context.model is None:
        planner = TrajectoryPlanner.from_parts(*shipped.load(PACKAGE, "planner"))
        config, draft = shipped.load(PACKAGE, "unmasked")
        unmasked = TrajectoryPlanner.from_parts(config, planner.state_dict() | draft)
        return Shared(planner, unmasked, windows_of(unseen, planner), seed)
    data = load_data(Recorded(DATA, sizes["data"], DATA_SEED), needs="trajectory-diffuser")
    fitting = {"batch_size": 64, "learning_rate": 1e-3, "seed": seed, "device": context.device}
    fitting |= {"max_steps": sizes["fit"], "decay_steps": sizes["fit"], "average_from": sizes["fit"] // 4}
    if context.model is None:
        # The schedule ends in noise: plans from noise need one that does, and its last five levels are the paper's.
        masked = Architecture(
            horizon=12,
            draft_width=64,
            draft_layers=1,
            features=32,
            levels=2,
            schedule="vp",
            return_scale=100.0,
        )
        planner = fit_planner(data, masked, Fitting(clean_start=True, **fitting))
    else:
        planner = TrajectoryPlanner.from_pretrained(context.model)
        masked = planner.architecture
    unmasked = make_planner(data, Architecture(**{**vars(masked), "causal": False}), seed)
    others = {k: v for k, v in planner.state_dict().items() if not k.startswith("draft.")}
    unmasked.load_state_dict(others, strict=False)
    fit_planner(data, unmasked.architecture, Fitting(parts="draft", **fitting), None, unmasked)
    return Shared(planner, unmasked, windows_of(unseen, planner), seed)


def planning(arm: str, sizes: dict[str, Any]) -> "Planning":
    """Return how an arm plans."""
    from noiseworks.trajectory_diffuser.options import Planning

    kinds = {"noise": ("noise", sizes["steps"]), "few": ("noise", STEPS), "draft": ("draft", 0)}
    start, steps = kinds.get(arm, ("draft", STEPS))
    return Planning(
        start=start, steps=steps, candidates=CANDIDATES, execute=EXECUTE, temperature=0.1, guidance=GUIDANCE
    )


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: score of each episode, time of single plans, plans that no body can follow."""
    import numpy as np
    import torch
    from noiseworks.bench.testbeds.maze import make_layout, references
    from noiseworks.core.timing import in_turns, work_clock
    from noiseworks.kits.rl.options import World
    from noiseworks.kits.rl.sources import make_env
    from noiseworks.kits.rl.stepping import evaluate_returns
    from noiseworks.trajectory_diffuser.acting import PlanningPolicy
    from noiseworks.trajectory_diffuser.drafting import next_state_error

    sizes, how = context.settings, planning(arm, dict(context.settings))
    planner = shared.unmasked if arm == "unmasked" else shared.planner
    env = make_env(World(f"maze:{LAYOUT}", reward="sparse"), sizes["episodes"], needs="trajectory-diffuser")
    policy = PlanningPolicy(planner, how, env.num_envs, shared.seed)
    layout, bad = make_layout(LAYOUT), []

    def after(step: Any) -> None:
        policy.after(step)
        bad.append(infeasible(layout.walls, policy.last.states.numpy()))

    found = evaluate_returns(
        env, policy.act, env.num_envs, FIRST_EPISODE + 1000 * (shared.seed % 1000), after=after
    )
    past = planner.mean + torch.zeros(1, planner.draft.room, 4)
    wishes = planner.return_range[1].expand(1, planner.draft.room)
    clock = work_clock(context.device)
    timed = in_turns({"plan": lambda turn: planner.plan(past, wishes, how)}, sizes["plans"], clock=clock)[
        "plan"
    ]
    metrics = {
        "score": found.scores(*references(LAYOUT)).tolist(),
        "milliseconds": [1e3 * s for s in timed.seconds],
        "infeasible": np.mean(bad, axis=0).tolist(),
    }
    if arm in ("full", "unmasked"):
        states, returns = (shared.unseen[name][::16] for name in ("states", "returns"))
        metrics["early_error"] = next_state_error(planner.draft, states, returns).tolist()
    return Measurement(metrics)


def infeasible(walls: "ndarray", states: "ndarray") -> "ndarray":
    """Return the share of each plan's steps [B] that end in a wall or are longer than any the body can take."""
    import numpy as np

    place = states[..., :2]
    cell = np.clip(np.floor(place).astype(np.int64), 0, np.array(walls.shape[::-1]) - 1)
    inside = walls[cell[..., 1], cell[..., 0]][:, 1:]
    return (inside | (np.abs(np.diff(place, axis=1)) > TOP_STEP).any(-1)).mean(1)


def sizes(
    data: int, fit: int, steps: int | None, episodes: int, plans: int, *, shipped: bool
) -> dict[str, Any]:
    """Return the settings of a scale; without steps, plans from noise take all of the schedule."""
    found = {"data": data, "fit": fit, "steps": steps, "episodes": episodes, "plans": plans}
    return found | {"shipped": shipped}


CLAIM = Claim(
    method="trajectory-diffuser",
    paper="Diffusion Models as Optimizers for Efficient Planning in Offline RL (ECCV 2024, arXiv 2407.16142)",
    statement="Five late diffusion steps from a drafted plan are as good as a hundred from noise, many times faster.",
    testbed="maze",
    arms=(
        Arm("noise", "100 steps from noise", "baseline"),
        Arm("few", "5 steps from noise", "naive"),
        Arm("draft", "draft alone", "naive"),
        Arm("unmasked", "5 steps from a draft without causal mask", "baseline"),
        Arm("full", "5 steps from a draft", "method"),
    ),
    targets=(
        at_most("milliseconds", "full", "noise", ratio=0.125),
        no_worse("score", "full", "noise", by=3.0, name="score against 100 steps"),
        at_least("score", "full", "few", difference=10.0, name="score against 5 steps from noise"),
        at_least("score", "full", "unmasked", difference=0.0, name="score against a draft without its mask"),
        at_most("early_error", "full", "unmasked", ratio=0.9, name="error of the draft without its mask"),
    ),
    scales={
        "smoke": Scale((500,), 120, sizes(1_000, 3, 5, 2, 2, shipped=False)),
        "quick": Scale((500,), 180, sizes(40_000, 4_000, 20, 4, 5, shipped=True)),
        "laptop": Scale(tuple(range(1000, 1005)), 900, sizes(40_000, 4_000, None, 5, 3, shipped=True)),
    },
    prepare=prepare,
    run=run,
    preconditions=(Floor("noise", "score", 60.0, "100 steps from noise reach a score of only {:.0f}"),),
    units="episode",
    columns={
        "score": "normalised score",
        "milliseconds": "milliseconds of a plan",
        "infeasible": "share of planned steps that no body can take",
        "early_error": "error of the drafted next state",
    },
)
