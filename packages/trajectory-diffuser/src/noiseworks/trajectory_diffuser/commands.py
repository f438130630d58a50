"""What `noiseworks-trajectory-diffuser` runs: each verb is one of these functions."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file, write_json
from noiseworks.kits.rl.options import Episodes, Recorded, World, check_paths
from noiseworks.trajectory_diffuser.options import Architecture, Fitting, Planning

if TYPE_CHECKING:
    from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner

NEEDS = "trajectory-diffuser"


def fit(
    *,
    recorded: Spread[Recorded],
    out: Path,
    architecture: Spread[Architecture] = Architecture(),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a planner on recorded experience.

    Args:
        recorded: The data.
        out: Folder of the run; the planner is its `model`. The same command goes on with a run that was stopped.
        architecture: The networks.
        fitting: Length, rates and bookkeeping.

    Returns:
        Where the planner is, and its steps.
    """
    check_writable(out)
    from noiseworks.kits.rl.sources import load_data
    from noiseworks.kits.training import open_run
    from noiseworks.trajectory_diffuser.training import fit_planner

    transitions = load_data(recorded, needs=NEEDS)
    transitions.windows(architecture.horizon, starts="strict")  # episodes that are too short are refused here
    with open_run(out, {"recorded": recorded, "architecture": architecture, "fit": fitting}) as run:
        fit_planner(transitions, architecture, fitting, run).save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def evaluate(
    *,
    model: str,
    world: Spread[World],
    planning: Spread[Planning] = Planning(),
    episodes: Spread[Episodes] = Episodes(),
    paths: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a planner in an environment.

    Args:
        model: Folder of a planner.
        world: The environment; it must have the rewards of the data.
        planning: How plans are made: --steps 0 plays drafts, --start noise plans without one.
        episodes: Episodes.
        paths: Picture of the first episodes' paths in a maze, .png or .webp.

    Returns:
        Mean return with its interval, success, plans and milliseconds a plan; where references are known, the score.
    """
    check_paths(paths, world.env)
    return _episodes(_load(model), world, planning, episodes, paths)


def compare(
    *,
    model: str,
    world: Spread[World],
    planning: Spread[Planning] = Planning(),
    episodes: Spread[Episodes] = Episodes(episodes=20, together=20),
    repeats: Whole = 10,
) -> dict[str, Any]:
    """Compare drafts, refined drafts and plans from noise: return, calls, and the time of one plan.

    Args:
        model: Folder of a planner.
        world: The environment.
        planning: Of the refined drafts; the others have its candidates and guidance.
        episodes: Episodes of each.
        repeats: Plans that are timed, one environment at a time; all kinds take turns.

    Returns:
        For each kind: the figures of `eval`, milliseconds of a single plan, and how many times faster it is than from
        noise in all steps.
    """
    from noiseworks.core.timing import in_turns, work_clock
    from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner

    planner: TrajectoryPlanner = _load(model)
    kinds = {
        "noise, all steps": replace(planning, start="noise", steps=None),
        "noise, 20 steps": replace(planning, start="noise", steps=min(20, planner.architecture.num_steps)),
        "noise, 5 steps": replace(planning, start="noise", steps=min(5, planner.architecture.num_steps)),
        "draft": replace(planning, start="draft", steps=0),
        "draft, refined": planning,
    }
    found = {name: _episodes(planner, world, kind, episodes) for name, kind in kinds.items()}
    past, wishes = _past(planner)
    arms = {name: (lambda turn, kind=kind: planner.plan(past, wishes, kind)) for name, kind in kinds.items()}
    device = planner.mean.device
    times = in_turns(arms, repeats, device=device, clock=work_clock(device))
    slowest = times["noise, all steps"].median
    for name, row in found.items():
        row |= {
            "plan_milliseconds": 1e3 * times[name].median,
            "times_faster": slowest / times[name].median,
        }
    return found


def plan(
    *,
    model: str,
    world: Spread[World],
    out: Path,
    planning: Spread[Planning] = Planning(),
    episodes: Spread[Episodes] = Episodes(episodes=4, together=4),
) -> dict[str, Any]:
    """Write the first plans of some episodes.

    Args:
        model: Folder of a planner.
        world: The environment.
        out: JSON file of states, drafts, actions, and the critic's values of all candidates.
        planning: How plans are made.
        episodes: How many, and of which seed.

    Returns:
        Where the plans are, and their network calls.
    """
    check_file(out, (".json",))
    from noiseworks.kits.rl.sources import check_widths, make_env
    from noiseworks.trajectory_diffuser.acting import PlanningPolicy

    planner, count = _load(model), episodes.episodes
    env = make_env(world, count, needs=NEEDS)
    check_widths(env, planner.obs_dim, planner.action_dim, "the planner")
    policy = PlanningPolicy(planner, planning, count, episodes.evaluation_seed)
    policy.act(env.reset(seed=episodes.evaluation_seed)[0])
    made = policy.last
    write_json(
        out,
        {
            "states": made.states.tolist(),
            "draft": None if made.draft is None else made.draft.tolist(),
            "actions": made.actions.tolist(),
            "values": made.values.tolist(),
            "chosen": made.chosen.tolist(),
        },
    )
    return {"plans": str(out), "draft_calls": made.calls[0], "refiner_calls": made.calls[1]}


def _load(model: str) -> "TrajectoryPlanner":
    from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner

    return TrajectoryPlanner.from_pretrained(model)


def _past(planner: "TrajectoryPlanner") -> tuple[Any, Any]:
    import torch

    room = planner.draft.room
    wishes = planner.return_range[1].expand(1, room)
    return planner.mean + planner.std * torch.zeros(1, room, planner.obs_dim), wishes


def _episodes(
    planner: "TrajectoryPlanner",
    world: World,
    planning: Planning,
    episodes: Episodes,
    paths: Path | None = None,
) -> dict[str, Any]:
    from noiseworks.kits.rl.sources import check_widths, make_env, references_of, write_paths
    from noiseworks.kits.rl.stepping import evaluate_returns
    from noiseworks.trajectory_diffuser.acting import PlanningPolicy

    env = make_env(world, min(episodes.together, episodes.episodes), needs=NEEDS)
    check_widths(env, planner.obs_dim, planner.action_dim, "the planner")
    shown, seed = check_paths(paths, world.env), episodes.evaluation_seed
    policy = PlanningPolicy(planner, planning, env.num_envs, seed)
    report = evaluate_returns(env, policy.act, episodes.episodes, seed, after=policy.after, paths=shown)
    write_paths(paths, world.env, report.paths, needs=NEEDS)
    draft, refiner = policy.last.calls
    found = report.summary() | {"plans": policy.plans, "draft_calls": draft, "refiner_calls": refiner}
    found["milliseconds"] = 1e3 * policy.seconds / policy.plans
    references = references_of(world, needs=NEEDS)
    return found if references is None else found | {"score": float(report.scores(*references).mean())}
