"""What `noiseworks-expo` runs: each verb is one of these functions."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.expo.options import Arena, BaseSizes, Learning, Pretraining, Proposals, Training
from noiseworks.kits.rl.options import Episodes, Recorded, World, check_paths

if TYPE_CHECKING:
    from noiseworks.expo.base import BasePolicy
    from noiseworks.expo.on_the_fly import OnTheFlyPolicy

NEEDS = "expo"


def fit(
    *,
    recorded: Spread[Recorded],
    out: Path,
    sizes: Spread[BaseSizes] = BaseSizes(),
    pretraining: Spread[Pretraining] = Pretraining(),
) -> dict[str, Any]:
    """Train a base policy that imitates recorded experience.

    Args:
        recorded: The data.
        out: Folder of the run; the base is its `base`. The same command goes on with a run that was stopped.
        sizes: The base.
        pretraining: Length and bookkeeping.

    Returns:
        Where the base is, and its steps.
    """
    check_writable(out)
    from noiseworks.expo.saving import save_base
    from noiseworks.expo.training import decisions_of, pretrain
    from noiseworks.kits.rl.sources import load_data
    from noiseworks.kits.training import open_run

    transitions = load_data(recorded, needs=NEEDS)
    decisions_of(transitions, sizes.chunk)  # actions out of bounds are refused here
    with open_run(out, {"recorded": recorded, "sizes": sizes, "fit": pretraining}) as run:
        save_base(out / "base", pretrain(transitions, sizes, pretraining, run))
    return {"base": str(out / "base"), "steps": pretraining.max_steps}


def train(
    *,
    model: str,
    arena: Spread[Arena],
    out: Path,
    proposals: Spread[Proposals] = Proposals(),
    learning: Spread[Learning] = Learning(),
    training: Spread[Training] = Training(),
) -> dict[str, Any]:
    """Learn critics and edits of a policy in an environment.

    Args:
        model: The base: a folder of `fit`; or a policy of one observation, a native or LeRobot directory or
            testbed:<name>.
        arena: The environment, and recorded experience.
        out: Folder of the run; the policy is its `policy`. The same command goes on with a run that was stopped.
        proposals: Candidates, and the scale of edits.
        learning: Settings.
        training: Length and bookkeeping.

    Returns:
        Where the policy is, decisions, environment steps, and the last temperature.
    """
    check_writable(out)
    base = _base(model)
    from noiseworks.expo.saving import save_policy
    from noiseworks.expo.training import ActionBox, recorded_decisions
    from noiseworks.expo.training import train as run_rounds
    from noiseworks.kits.rl.sources import check_widths, load_data, make_env
    from noiseworks.kits.training import open_run

    transitions = load_data(arena.recorded, needs=NEEDS) if arena.recorded else None
    env = make_env(arena, learning.envs, needs=NEEDS, chunk=base.chunk)
    box = ActionBox.of(env, base.chunk)
    check_widths(env, base.obs_dim, base.action_dim // base.chunk, "the policy")
    if transitions is not None:
        recorded_decisions(transitions, base, box)  # another task's data are refused here
    settings = {"model": model, "arena": arena, "proposals": proposals}
    settings |= {"learning": learning, "training": training}
    with open_run(out, settings) as run:
        learner, loop = run_rounds(base, env, transitions, (proposals, learning, training), run)
        save_policy(out / "policy", learner.policy)
    counted = {"decisions": loop.decisions, "environment_steps": loop.steps}
    return {"policy": str(out / "policy"), **counted, "temperature": learner.alpha}


def evaluate(
    *,
    world: Spread[World],
    model: str | None = None,
    policy: str | None = None,
    keep: str | None = None,
    episodes: Spread[Episodes] = Episodes(),
    paths: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a policy that `train` wrote, or a base by itself; tells what a decision costs beyond the base's own.

    Args:
        world: The environment.
        model: The base, where it is to be evaluated by itself or the policy edits another library's.
        policy: Folder of a policy that `train` wrote.
        keep: Candidates instead of the policy's own: both, base (no edits) or edited.
        episodes: Episodes.
        paths: Picture of the first episodes' paths in a maze, .png or .webp.

    Returns:
        Mean return with its interval, success, decisions an episode, and milliseconds of a decision.
    """
    if model is None and policy is None:
        raise InputError("name a policy that train wrote (--policy), a base (--model), or both")
    shown = check_paths(paths, world.env)
    base = None if model is None else _base(model)
    chosen = _policy(policy, base, keep, episodes.evaluation_seed)
    import numpy as np
    import torch
    from noiseworks.core.timing import in_turns, work_clock
    from noiseworks.expo.training import ActionBox
    from noiseworks.kits.rl.sources import check_widths, make_env, write_paths
    from noiseworks.kits.rl.stepping import evaluate_returns

    acting = chosen.base if chosen is not None else base
    env = make_env(world, min(episodes.together, episodes.episodes), needs=NEEDS, chunk=acting.chunk)
    check_widths(env, acting.obs_dim, acting.action_dim // acting.chunk, "the policy")
    box, generator = ActionBox.of(env, acting.chunk), torch.Generator().manual_seed(episodes.evaluation_seed)

    def of_base(obs: np.ndarray) -> np.ndarray:
        made = acting.sample(torch.as_tensor(obs, dtype=torch.float32), 1, generator)[:, 0]
        return made.unflatten(1, (acting.chunk, -1)).detach().numpy()

    act = of_base if chosen is None else chosen.act
    report = evaluate_returns(
        env,
        lambda obs: box.unscale(act(obs)),
        episodes.episodes,
        episodes.evaluation_seed,
        paths=shown,
    )
    write_paths(paths, world.env, report.paths, needs=NEEDS)
    one = env.reset(seed=0)[0][:1]
    times = in_turns(
        {"base": lambda turn: of_base(one), "policy": lambda turn: act(one)}, 20, clock=work_clock("cpu")
    )
    return report.summary() | {
        "milliseconds": 1e3 * times["policy"].median,
        "base_milliseconds": 1e3 * times["base"].median,
    }


def _base(model: str) -> "BasePolicy":
    """Return a base of `fit`, or another policy as one."""
    from noiseworks.core.artifacts import CONFIG_NAME, read_json
    from noiseworks.expo.saving import BASE_KIND, load_base

    folder = Path(resolve_model(model))
    if (folder / CONFIG_NAME).is_file() and read_json(folder / CONFIG_NAME).get("kind") == BASE_KIND:
        return load_base(folder)
    from noiseworks.expo.base import HostBase
    from noiseworks.kits.policies.hosts import load_host

    return HostBase(load_host(model))


def _policy(
    policy: str | None, base: "BasePolicy | None", keep: str | None, seed: int
) -> "OnTheFlyPolicy | None":
    if policy is None:
        return None
    from noiseworks.expo.saving import load_policy

    found = load_policy(policy, base, seed)
    if keep is not None:
        found.proposals = replace(found.proposals, keep=keep)
    return found
