"""Target policies as log densities of actions: learners of the kit, stable-baselines3's, and functions of one's own."""

from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.networks import LOG_STD_RANGE, normal_log_prob
from noiseworks.policy_guided_diffusion.guidance import LogProb
from torch import Tensor


def gaussian(mean: Any, std: float = 1.0) -> LogProb:
    """Return the log density of a normal distribution around an actor's action.

    Args:
        mean: Observations [..., Do] -> actions [..., Da].
        std: Deviation of every dimension; the paper gives a deterministic actor 1.
    """
    check_number("std", std, low=0, low_open=True)
    log_std = torch.tensor(std).log()

    def log_prob(obs: Tensor, action: Tensor) -> Tensor:
        with torch.no_grad():
            centre = mean(obs)
        return normal_log_prob(action, centre, log_std.to(action)).sum(-1)

    return log_prob


def as_log_prob(policy: Any, std: float = 1.0) -> LogProb:
    """Return a policy's log density of actions in [-1, 1].

    Args:
        policy: `TD3BC` or `IQL` of the kit; an actor-critic learner of stable-baselines3 with a box of actions in
            [-1, 1]; an object with a method `log_prob(obs, action)`; or a function from observations to actions.
        std: Deviation around deterministic actions.

    Raises:
        InputError: When it is none of these.
    """
    if hasattr(policy, "normalise") and hasattr(policy, "actor"):
        return _learner(policy, std)
    if hasattr(policy, "observation_space") and hasattr(policy, "policy"):
        return _stable_baselines3(policy, std)
    if hasattr(policy, "log_prob"):
        return policy.log_prob
    if callable(policy):
        return gaussian(policy, std)
    raise InputError(
        f"a {type(policy).__name__} is no policy: give a learner, an object with log_prob(obs, action) or a function"
    )


def _learner(learner: Any, std: float) -> LogProb:
    """Return the density of a learner of `kits.rl.offline`, on raw observations."""
    own = getattr(learner.actor, "log_std", None)
    if own is None:
        return gaussian(learner.act, std)

    def log_prob(obs: Tensor, action: Tensor) -> Tensor:
        with torch.no_grad():
            centre, log_std = learner.actor(learner.normalise(obs)), own.clamp(*LOG_STD_RANGE)
        return normal_log_prob(action, centre, log_std).sum(-1)

    return log_prob


def _stable_baselines3(model: Any, std: float) -> LogProb:
    """Return the density of a stable-baselines3 learner's actor."""
    space = model.action_space
    if not (hasattr(space, "low") and (space.low == -1).all() and (space.high == 1).all()):
        raise InputError(
            f"the policy's actions must lie in [-1, 1], its space is {space}: wrap it in RescaleAction"
        )
    actor = getattr(model.policy, "actor", None)
    if actor is None:
        raise InputError(f"a {type(model).__name__} has no actor of its own; take SAC, TD3 or DDPG")
    width = space.shape[0]

    def flat(obs: Tensor) -> Tensor:
        return obs.reshape(-1, obs.shape[-1]).to(model.device)

    if not hasattr(actor, "get_action_dist_params"):
        return gaussian(lambda obs: actor(flat(obs)).reshape(*obs.shape[:-1], width).to(obs.device), std)

    def log_prob(obs: Tensor, action: Tensor) -> Tensor:
        with torch.no_grad():
            mean, log_std, _ = actor.get_action_dist_params(flat(obs))
        distribution = actor.action_dist.proba_distribution(mean, log_std)
        found = distribution.log_prob(action.reshape(-1, width).to(model.device))
        return found.reshape(obs.shape[:-1]).to(obs.device)

    return log_prob
