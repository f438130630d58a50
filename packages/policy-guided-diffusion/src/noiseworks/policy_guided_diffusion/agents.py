"""Agents that learn from real, synthetic and guided data."""

from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.rl.offline import (
    IQL,
    TD3BC,
    Batch,
    Draws,
    IQLSettings,
    TD3BCSettings,
    obs_statistics,
    train_offline,
)
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Run
from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
from noiseworks.policy_guided_diffusion.options import Agent, Guidance, Replay, Sampling
from noiseworks.policy_guided_diffusion.replay import SyntheticReplay


def make_agent(transitions: Transitions, agent: Agent) -> TD3BC | IQL:
    """Return an untrained learner on the data's statistics."""
    statistics = obs_statistics(transitions)
    if agent.agent == "td3bc":
        settings = TD3BCSettings(alpha=agent.alpha, hidden=agent.hidden)
        return TD3BC(transitions.action_dim, *statistics, settings, agent.agent_seed)
    settings = IQLSettings(expectile=agent.expectile, beta=agent.beta, hidden=agent.hidden)
    return IQL(transitions.action_dim, *statistics, settings, agent.agent_seed, agent.updates)


def train_agent(
    transitions: Transitions,
    agent: Agent,
    model: TrajectoryDiffusion | None = None,
    replay: Replay | None = None,
    guidance: Guidance | None = None,
    sampling: Sampling | None = None,
    *,
    run: Run | None = None,
    progress: bool = False,
) -> TD3BC | IQL:
    """Return a trained agent.

    Args:
        transitions: The recorded data.
        agent: The learner, and whether its data are real, unguided or guided.
        model: The trajectory model; not needed for real data.
        replay: Sizes of synthetic pools and of batches.
        guidance: How the agent's policy guides.
        sampling: How trajectories are denoised.
        run: The open run, None to keep nothing on the way.
        progress: Whether to show a bar.

    Raises:
        InputError: When a model is missing or of other widths.
        NonFiniteError: When a loss or a trajectory is not finite; the last checkpoint stays.
    """
    learner, replay, real = make_agent(transitions, agent), replay or Replay(), Batch.of(transitions)
    if agent.mode == "real":
        draw = Draws(real, replay.batch_size, mix64(agent.agent_seed, 3) >> 1)
    elif model is None:
        raise InputError(f"mode {agent.mode} needs a trajectory model: fit one first, or take mode real")
    else:
        policy = learner if agent.mode == "guided" else None
        shape = guidance or Guidance(), sampling or Sampling()
        draw = SyntheticReplay(model, policy, real, replay, *shape, agent.agent_seed)
    every = agent.checkpoint_every
    train_offline(learner, draw, agent.updates, run, checkpoint_every=every, progress=progress)
    return learner
