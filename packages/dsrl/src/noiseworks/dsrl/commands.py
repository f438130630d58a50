"""What `noiseworks-dsrl` runs: each verb is one of these functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread
from noiseworks.dsrl.options import Decoding, Evaluation, Learning
from noiseworks.kits.rl.options import World, check_paths

if TYPE_CHECKING:
    from noiseworks.dsrl.hosts import HostDecoder


def train(
    *,
    model: str,
    world: Spread[World],
    out: Path,
    decoding: Spread[Decoding] = Decoding(),
    learning: Spread[Learning] = Learning(),
    evaluation: Spread[Evaluation] = Evaluation(),
) -> dict[str, Any]:
    """Learn which noise a frozen policy should start from.

    Args:
        model: The policy: a native or LeRobot directory, an original checkpoint, or testbed:<name>.
        world: The environment.
        out: Folder of the run; the noise actor is its `actor`. The same command goes on with a run that was stopped.
        decoding: How noise becomes actions.
        learning: Reinforcement learning.
        evaluation: Of the frozen and the steered policy.

    Returns:
        Where the actor is, environment steps, both policies' episodes and, with `--candidates`, those of the best of N.
    """
    check_writable(out)
    resolve_model(model)
    if evaluation.candidates > 1 and learning.variant == "sac":
        raise InputError(
            "only variant na has a critic of actions to rank candidates with: leave candidates out"
        )
    from noiseworks.dsrl import training
    from noiseworks.dsrl.steering import BestOfPolicy, SteeredPolicy, steered
    from noiseworks.kits.training import open_run

    decoder = _decoder(model, decoding.steps, world)
    recorded = training.load_recorded(world, learning)
    seed = evaluation.evaluation_seed
    base = training.evaluate(SteeredPolicy(decoder, decoding=decoding, seed=seed), world, evaluation)
    settings = {"model": model, "world": world, "decoding": decoding, "learning": learning}
    with open_run(out, settings) as run:
        learner, steps = training.train(
            decoder, world, decoding, learning, run, recorded=recorded, progress=True
        )
        policy = steered(learner, deterministic=evaluation.deterministic, seed=seed)
        policy.save_pretrained(out / "actor")
    found = {
        "actor": str(out / "actor"),
        "environment_steps": steps,
        "frozen": base.summary(),
        "steered": training.evaluate(policy, world, evaluation).summary(),
    }
    if evaluation.candidates > 1:
        ranked = BestOfPolicy(learner, evaluation.candidates, seed)
        found["best_of"] = training.evaluate(ranked, world, evaluation).summary()
    return found


def evaluate(
    *,
    model: str,
    world: Spread[World],
    actor: str | None = None,
    decoding: Spread[Decoding] = Decoding(),
    evaluation: Spread[Evaluation] = Evaluation(),
    paths: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a frozen policy, steered by a noise actor or by itself; tells what a decision costs beyond its own.

    Tied noise shows here before any training.

    Args:
        model: The policy.
        world: The environment.
        actor: Folder of a noise actor that `train` wrote; none for normal noise.
        decoding: How noise becomes actions; an actor brings its own magnitude and ties.
        evaluation: Episodes.
        paths: Picture of the first episodes' paths in a maze, .png or .webp.

    Returns:
        Mean return with its interval, success, chunks an episode, milliseconds of a decision, steered and not, and how
        much noise decides at a start: how far a chunk moves for a unit of noise, and an action's deviation over noise.
    """
    shown = check_paths(paths, world.env)
    resolve_model(model)
    from noiseworks.core.timing import in_turns, work_clock
    from noiseworks.dsrl import training
    from noiseworks.dsrl.decoder import sensitivity
    from noiseworks.dsrl.steering import SteeredPolicy
    from noiseworks.kits.rl.sources import make_env, write_paths

    decoder, seed = _decoder(model, decoding.steps, world), evaluation.evaluation_seed
    frozen = SteeredPolicy(decoder, decoding=decoding, seed=seed)
    if actor is None:
        policy = frozen
    else:
        policy = SteeredPolicy.from_pretrained(
            actor, decoder, deterministic=evaluation.deterministic, seed=seed
        )
    found = training.evaluate(policy, world, evaluation, paths=shown)
    write_paths(paths, world.env, found.paths, needs="dsrl")
    one = make_env(world, 1, needs="dsrl", chunk=decoder.chunk).reset(seed=0)[0]
    arms = {"base": lambda turn: frozen.act(one), "policy": lambda turn: policy.act(one)}
    times = in_turns(arms, 20, clock=work_clock("cpu"))
    decided = sensitivity(decoder, one, tie=policy.decoding.tie, seed=seed)
    return found.summary() | {
        "milliseconds": 1e3 * times["policy"].median,
        "base_milliseconds": 1e3 * times["base"].median,
        "noise_slope": float(decided.slope),
        "noise_spread": float(decided.spread),
    }


def _decoder(model: str, steps: int, world: World) -> "HostDecoder":
    """Return a frozen policy as a decoder; an environment of another task is refused."""
    from noiseworks.dsrl.hosts import HostDecoder
    from noiseworks.kits.policies.hosts import load_host
    from noiseworks.kits.rl.sources import check_widths, make_env

    decoder = HostDecoder(load_host(model), steps)
    shapes = getattr(decoder.host, "observation_shapes", {})
    if "obs" in shapes:
        width = decoder.host.n_obs_steps * shapes["obs"][0]
        check_widths(make_env(world, 1, needs="dsrl"), width, decoder.action_dim, "the policy")
    return decoder
