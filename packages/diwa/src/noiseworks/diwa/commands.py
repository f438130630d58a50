"""What `noiseworks-diwa` runs: each verb is one of these functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.options import Spread
from noiseworks.diwa.options import (
    Dreaming,
    ModelFit,
    Models,
    ModelSizes,
    PolicyFit,
    PolicySizes,
    RewardFit,
    Tuning,
    check_fits,
)
from noiseworks.kits.rl.options import Episodes, Recorded, World, check_paths

if TYPE_CHECKING:
    from noiseworks.diwa.world_model import WorldModel

NEEDS = "diwa"


def fit(
    *,
    recorded: Spread[Recorded],
    out: Path,
    sizes: Spread[ModelSizes] = ModelSizes(),
    fitting: Spread[ModelFit] = ModelFit(),
) -> dict[str, Any]:
    """Train a world model of recorded play, which needs no labels.

    Args:
        recorded: The play.
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        sizes: The model.
        fitting: Length, windows and bookkeeping.

    Returns:
        Where the model is, and its steps.
    """
    check_writable(out)
    from noiseworks.diwa.training import fit_model
    from noiseworks.kits.rl.sources import load_data
    from noiseworks.kits.training import open_run

    transitions = load_data(recorded, needs=NEEDS)
    transitions.windows(fitting.length)  # episodes that are too short are refused here
    with open_run(out, {"recorded": recorded, "sizes": sizes, "fit": fitting}) as run:
        fit_model(transitions, sizes, fitting, run).save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def imitate(
    *,
    model: str,
    recorded: Spread[Recorded],
    out: Path,
    sizes: Spread[PolicySizes] = PolicySizes(),
    fitting: Spread[PolicyFit] = PolicyFit(),
) -> dict[str, Any]:
    """Train a policy that imitates demonstrations on a world model's features.

    Args:
        model: Folder of a world model.
        recorded: The demonstrations.
        out: Folder of the run; the policy is its `policy`. The same command goes on with a run that was stopped.
        sizes: The policy.
        fitting: Length and bookkeeping.

    Returns:
        Where the policy is, and its steps.
    """
    check_writable(out)
    from noiseworks.diwa.training import fit_policy
    from noiseworks.kits.training import open_run

    _, episodes = _featurised(model, recorded)
    with open_run(out, {"model": model, "recorded": recorded, "sizes": sizes, "fit": fitting}) as run:
        fit_policy(episodes, sizes, fitting, run).save_pretrained(out / "policy")
    return {"policy": str(out / "policy"), "steps": fitting.max_steps}


def reward(
    *,
    model: str,
    recorded: Spread[Recorded],
    out: Path,
    fitting: Spread[RewardFit] = RewardFit(),
) -> dict[str, Any]:
    """Train a classifier of success on real and imagined latents.

    Args:
        model: Folder of a world model.
        recorded: Demonstrations whose rewards mark success.
        out: Folder for the classifier.
        fitting: Sizes and length.

    Returns:
        Where the classifier is, and its precision and recall on held-out episodes.
    """
    check_writable(out)
    from noiseworks.diwa.training import fit_reward

    loaded, episodes = _featurised(model, recorded)
    classifier, found = fit_reward(loaded, episodes, fitting)
    classifier.save_pretrained(out)
    return {"classifier": str(out)} | ({} if found is None else found._asdict())


def train(
    *,
    policy: str,
    models: Spread[Models],
    recorded: Spread[Recorded],
    out: Path,
    dreaming: Spread[Dreaming] = Dreaming(),
    tuning: Spread[Tuning] = Tuning(),
) -> dict[str, Any]:
    """Tune a policy inside a world model, without a real step.

    Args:
        policy: Folder of a policy of `imitate`.
        models: The world model and the classifier.
        recorded: Demonstrations whose first latents dreams begin from.
        out: Folder of the run; the policy is its `policy`. The same command goes on with a run that was stopped.
        dreaming: Dreamt episodes.
        tuning: PPO.

    Returns:
        Where the policy is, dreamt steps, real steps (none), and the share of dreamt episodes that succeed in the end.
    """
    check_writable(out)
    from noiseworks.diwa.latent_env import WorldDream
    from noiseworks.diwa.policy import ChainPolicy
    from noiseworks.diwa.rewards import SuccessClassifier
    from noiseworks.diwa.training import dreamt_success, starts_of, tune
    from noiseworks.kits.training import open_run

    base = ChainPolicy.from_pretrained(policy)
    check_fits(dreaming, tuning, base.sizes)
    loaded, episodes = _featurised(models.model, recorded)
    judge = SuccessClassifier.from_pretrained(models.classifier)
    dream = WorldDream(loaded, judge, starts_of(episodes), dreaming.envs)
    settings = {"policy": policy, "models": models, "recorded": recorded}
    with open_run(out, settings | {"dreaming": dreaming, "tuning": tuning}) as run:
        tuned, loop = tune(base, dream, dreaming, tuning, run)
        tuned.save_pretrained(out / "policy")
    imagined = dreamt_success(tuned, dream, dreaming.limit, tuning.seed)
    return {"policy": str(out / "policy"), "dreamt_steps": loop.stepper.steps, "real_steps": 0} | {
        "imagined_success": float(imagined.mean())
    }


def evaluate(
    *,
    model: str,
    policy: str,
    world: Spread[World],
    episodes: Spread[Episodes] = Episodes(),
    paths: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a policy in a real environment; tells what an action costs.

    Args:
        model: Folder of the world model.
        policy: Folder of a policy.
        world: The environment.
        episodes: Episodes.
        paths: Picture of the first episodes' paths in a maze, .png or .webp.

    Returns:
        Mean return with its interval, success, steps an episode, and milliseconds of an action, averaged over a chunk.
    """
    shown = check_paths(paths, world.env)
    from noiseworks.core.timing import in_turns, work_clock
    from noiseworks.diwa.deployment import FilteredPolicy
    from noiseworks.diwa.policy import ChainPolicy
    from noiseworks.diwa.world_model import WorldModel
    from noiseworks.kits.rl.sources import check_widths, make_env, write_paths
    from noiseworks.kits.rl.stepping import evaluate_returns

    loaded, chosen = WorldModel.from_pretrained(model), ChainPolicy.from_pretrained(policy)
    env = make_env(world, min(episodes.together, episodes.episodes), needs=NEEDS)
    check_widths(env, loaded.obs_dim, loaded.action_dim, "the world model")
    seed = episodes.evaluation_seed
    acting = FilteredPolicy(loaded, chosen, env.num_envs, seed)
    report = evaluate_returns(env, acting.act, episodes.episodes, seed, after=acting.after, paths=shown)
    write_paths(paths, world.env, report.paths, needs=NEEDS)
    one, obs = FilteredPolicy(loaded, chosen, 1, seed), env.reset(seed=seed)[0][:1]
    chunks = in_turns(
        {"chunk": lambda turn: [one.act(obs) for _ in range(chosen.chunk)]}, 10, clock=work_clock("cpu")
    )["chunk"]
    return report.summary() | {"milliseconds": 1e3 * chunks.median / chosen.chunk}


def _featurised(model: str, recorded: Recorded) -> "tuple[WorldModel, Any]":
    from noiseworks.diwa.training import featurise
    from noiseworks.diwa.world_model import WorldModel
    from noiseworks.kits.rl.sources import load_data

    loaded = WorldModel.from_pretrained(model)
    return loaded, featurise(loaded, load_data(recorded, needs=NEEDS))
