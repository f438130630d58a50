"""What `noiseworks-policy-guided-diffusion` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.options import Spread
from noiseworks.kits.rl.options import Recorded
from noiseworks.policy_guided_diffusion.options import (
    Agent,
    Architecture,
    Draw,
    Fitting,
    Guidance,
    Replay,
    Sampling,
    Windows,
)

EVALUATION_SEED, NEEDS = 10_000, "policy-guided-diffusion"


def fit(
    *,
    recorded: Spread[Recorded],
    out: Path,
    architecture: Spread[Architecture] = Architecture(),
    windows: Spread[Windows] = Windows(),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a diffusion model of whole trajectories on recorded experience.

    Args:
        recorded: The data.
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        architecture: The network.
        windows: Which windows are learned.
        fitting: Length and bookkeeping.

    Returns:
        Where the model is, and its steps.
    """
    check_writable(out)
    from noiseworks.kits.rl.sources import load_data

    transitions = load_data(recorded, needs=NEEDS)
    from noiseworks.kits.training import open_run
    from noiseworks.policy_guided_diffusion.training import fit_trajectories

    settings = {"recorded": recorded, "architecture": architecture, "windows": windows, "fit": fitting}
    with open_run(out, settings) as run:
        fit_trajectories(transitions, architecture, windows, fitting, run).save_pretrained(out / "model")
    return {"model": str(out / "model"), "steps": fitting.max_steps}


def sample(
    *,
    model: str,
    out: Path,
    policy: str | None = None,
    draw: Spread[Draw] = Draw(),
    guidance: Spread[Guidance] = Guidance(),
    sampling: Spread[Sampling] = Sampling(),
) -> dict[str, Any]:
    """Write synthetic transitions, guided towards a saved agent's policy if one is named.

    Args:
        model: Folder of a trajectory model.
        out: Folder for the transitions, which any learner of the kit reads.
        policy: Folder of an agent that `train` wrote; none for the data's own behaviour.
        draw: How many.
        guidance: How the policy guides.
        sampling: How trajectories are denoised.

    Returns:
        Transitions, and the mean log density of the actions under the policy.
    """
    check_writable(out)
    from noiseworks.kits.rl.offline import load_learner
    from noiseworks.policy_guided_diffusion.measures import log_likelihood
    from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
    from noiseworks.policy_guided_diffusion.policies import as_log_prob

    loaded = TrajectoryDiffusion.from_pretrained(model)
    learner = None if policy is None else load_learner(policy)
    made = loaded.sample(draw.n, learner, guidance, sampling, seed=draw.seed)
    transitions = made.transitions()
    transitions.save(out)
    result: dict[str, Any] = {"transitions": len(transitions), "out": str(out)}
    if learner is not None:
        result["log_likelihood"] = float(log_likelihood(made, as_log_prob(learner)).mean())
    return result


def train(
    *,
    recorded: Spread[Recorded],
    out: Path,
    agent: Spread[Agent] = Agent(),
    replay: Spread[Replay] = Replay(),
    guidance: Spread[Guidance] = Guidance(),
    sampling: Spread[Sampling] = Sampling(),
) -> dict[str, Any]:
    """Train an offline agent on real data, on samples of a trajectory model, or on samples near its own policy.

    Args:
        recorded: The recorded data.
        out: Folder of the run; the agent is its `agent`. The same command goes on with a run that was stopped.
        agent: The learner and its data.
        replay: The synthetic data.
        guidance: How the agent's policy guides.
        sampling: How trajectories are denoised.

    Returns:
        Where the agent is and, on a maze, its returns and normalised score.
    """
    check_writable(out)
    if agent.mode != "real" and replay.model is None:
        raise InputError(f"mode {agent.mode} needs a trajectory model: give --model, or take --mode real")
    from noiseworks.kits.rl.offline import save_learner
    from noiseworks.kits.rl.sources import load_data, make_env, references_of, world_of

    transitions, episodes = load_data(recorded, needs=NEEDS), agent.episodes
    world = world_of(recorded)
    references = None if world is None else references_of(world, needs=NEEDS)
    from noiseworks.kits.training import open_run
    from noiseworks.policy_guided_diffusion.agents import train_agent
    from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
    from noiseworks.policy_guided_diffusion.replay import check_data

    loaded = None if replay.model is None else TrajectoryDiffusion.from_pretrained(replay.model)
    if loaded is not None:
        check_data(loaded, transitions.obs_dim, transitions.action_dim)
    settings = {"recorded": recorded, "agent": agent, "replay": replay}
    with open_run(out, settings | {"guidance": guidance, "sampling": sampling}) as run:
        learner = train_agent(transitions, agent, loaded, replay, guidance, sampling, run=run, progress=True)
        save_learner(out / "agent", learner)
    result: dict[str, Any] = {"agent": str(out / "agent"), "updates": learner.updates}
    if world is not None and references is not None:
        from noiseworks.kits.rl.stepping import evaluate_returns

        env = make_env(world, min(episodes, 100), needs=NEEDS)
        report = evaluate_returns(env, learner.policy(), episodes, EVALUATION_SEED)
        result |= report.summary() | {"score": float(report.scores(*references).mean())}
    return result
