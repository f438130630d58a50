"""Offline learners that judge data: TD3+BC and IQL, with the published constants.

Both read batches of `Batch`, act on raw observations and keep the data's statistics with them.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_finite, check_number
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.rl.networks import Critics, DeterministicActor, GaussianActor, mlp, polyak
from noiseworks.kits.rl.transitions import Transitions
from torch import Tensor, nn

if TYPE_CHECKING:
    from noiseworks.kits.training import Run

ROUND = 100  # updates between two looks at whether a checkpoint is due
OBS_EPS = 1e-3  # added to the observations' deviation
ADVANTAGE_CAP = 100.0
LEARNER_KIND = "rl/offline-learner"


class Batch(NamedTuple):
    """Transitions to learn from, float32 tensors.

    Attributes:
        obs: [B, Do].
        actions: [B, Da].
        rewards: [B].
        next_obs: [B, Do].
        masks: [B], 0 where the task ended and 1 elsewhere, timeouts included.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    masks: Tensor

    @classmethod
    def of(cls, transitions: Transitions, device: torch.device | str = "cpu") -> "Batch":
        """Return all transitions as one batch."""
        arrays = (
            transitions.observations,
            transitions.actions,
            transitions.rewards,
            transitions.next_observations,
            1 - transitions.terminals.astype(np.float32),
        )
        return cls(*(torch.as_tensor(array, device=device) for array in arrays))

    def rows(self, index: Tensor) -> "Batch":
        """Return some transitions."""
        return Batch(*(part[index] for part in self))

    def sample(self, count: int, generator: torch.Generator) -> "Batch":
        """Return transitions drawn with replacement."""
        return self.rows(torch.randint(len(self.rewards), (count,), generator=generator))


@dataclass(frozen=True)
class TD3BCSettings(Options):
    """Constants of TD3+BC.

    Attributes:
        alpha: Weight of the value against imitation.
        gamma: Discount.
        tau: Share by which targets follow.
        policy_noise: Deviation of the noise on target actions.
        noise_clip: Largest such noise.
        actor_every: Critic steps for one step of the actor and of the targets.
        learning_rate: Of Adam.
        hidden: Width of the two hidden layers.
    """

    alpha: Annotated[float, at_least(0)] = 2.5
    gamma: Annotated[float, at_least(0), at_most(1)] = 0.99
    tau: Annotated[float, above(0), at_most(1)] = 0.005
    policy_noise: Annotated[float, at_least(0)] = 0.2
    noise_clip: Annotated[float, at_least(0)] = 0.5
    actor_every: Annotated[int, at_least(1)] = 2
    learning_rate: Annotated[float, above(0)] = 3e-4
    hidden: Annotated[int, at_least(1)] = 256


@dataclass(frozen=True)
class IQLSettings(Options):
    """Constants of implicit Q-learning; on mazes expectile 0.9 and beta 10 are usual.

    Attributes:
        expectile: Of the value: 0.5 is the mean, towards 1 the best action seen.
        beta: Inverse temperature of the advantage weights.
        gamma: Discount.
        tau: Share by which the target critics follow.
        learning_rate: Of Adam; the actor's falls to 0 along a cosine where the number of steps is known.
        hidden: Width of the two hidden layers.
    """

    expectile: Annotated[float, above(0), below(1)] = 0.7
    beta: Annotated[float, at_least(0)] = 3.0
    gamma: Annotated[float, at_least(0), at_most(1)] = 0.99
    tau: Annotated[float, above(0), at_most(1)] = 0.005
    learning_rate: Annotated[float, above(0)] = 3e-4
    hidden: Annotated[int, at_least(1)] = 256


class _Offline(nn.Module):
    """What the two learners share: statistics, networks of a seed, optimisers, acting."""

    OPTIMIZERS: ClassVar[tuple[str, ...]]

    def __init__(self, action_dim: int, obs_mean: Tensor, obs_std: Tensor) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.register_buffer("obs_mean", obs_mean.clone())
        self.register_buffer("obs_std", obs_std.clone())
        self.updates = 0
        self.generator: torch.Generator | None = None

    def normalise(self, obs: Tensor) -> Tensor:
        """Return observations [..., Do] in the networks' units."""
        return (obs - self.obs_mean) / self.obs_std

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Return the learner's best actions [..., Da] for observations [..., Do]."""
        return self.actor(self.normalise(obs)).clamp(-1, 1)

    def policy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return `act` on arrays, as evaluations want it."""
        device = self.obs_mean.device
        return lambda obs: self.act(torch.as_tensor(obs, dtype=torch.float32, device=device)).cpu().numpy()

    def training_state(self) -> dict[str, Any]:
        """Return networks, optimisers, random state and count: what further updates depend on."""
        found = {name: getattr(self, name).state_dict() for name in self.OPTIMIZERS if getattr(self, name)}
        found |= {"networks": self.state_dict(), "updates": self.updates}
        return found | ({"random": self.generator.get_state()} if self.generator is not None else {})

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `training_state`."""
        self.load_state_dict(state["networks"])
        for name in self.OPTIMIZERS:
            if getattr(self, name):
                getattr(self, name).load_state_dict(state[name])
        if self.generator is not None:
            self.generator.set_state(state["random"])
        self.updates = state["updates"]

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def obs_statistics(transitions: Transitions) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (plus 0.001) of the observations, float32 [Do] each."""
    seen = transitions.observations.astype(np.float64)
    mean, std = seen.mean(0), seen.std(0) + OBS_EPS
    return torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)


class TD3BC(_Offline):
    """TD3+BC (Fujimoto and Gu 2021): TD3 whose actor also imitates the data.

    Args:
        action_dim: Width of an action.
        obs_mean: Mean of the observations, [Do].
        obs_std: Their deviation, [Do].
        settings: Constants.
        seed: Of the networks' start and of the target noise.
    """

    OPTIMIZERS = ("actor_optimizer", "critic_optimizer")

    def __init__(
        self,
        action_dim: int,
        obs_mean: Tensor,
        obs_std: Tensor,
        settings: TD3BCSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(action_dim, obs_mean, obs_std)
        settings = settings or TD3BCSettings()
        self.settings, obs_dim = settings, len(obs_mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = DeterministicActor(obs_dim, action_dim, settings.hidden)
            self.critics = Critics(obs_dim, action_dim, 2, settings.hidden)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.generator = torch.Generator().manual_seed(seed)
        self.actor_optimizer = _adam(self.actor, settings.learning_rate)
        self.critic_optimizer = _adam(self.critics, settings.learning_rate)

    def update(self, batch: Batch) -> None:
        """Take one critic step and, every `actor_every` of them, one of the actor and the targets.

        Raises:
            NonFiniteError: When a critic's loss is not finite.
        """
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        loss = self.critic_loss(obs, batch, next_obs)
        check_finite("critic loss", loss.detach(), self.updates)
        self._step(self.critic_optimizer, loss)
        self.updates += 1
        if self.updates % self.settings.actor_every == 0:
            self._step(self.actor_optimizer, self.actor_loss(obs, batch.actions))
            polyak(self.target_actor, self.actor, self.settings.tau)
            polyak(self.target_critics, self.critics, self.settings.tau)

    def critic_loss(self, obs: Tensor, batch: Batch, next_obs: Tensor) -> Tensor:
        """Return the squared temporal-difference error, summed over the two critics."""
        settings = self.settings
        with torch.no_grad():
            noise = torch.randn(batch.actions.shape, generator=self.generator).to(obs) * settings.policy_noise
            noise = noise.clamp(-settings.noise_clip, settings.noise_clip)
            next_action = (self.target_actor(next_obs) + noise).clamp(-1, 1)
            value = self.target_critics(next_obs, next_action).amin(0)
            target = batch.rewards + settings.gamma * batch.masks * value
        return (self.critics(obs, batch.actions) - target).square().mean(1).sum()

    def actor_loss(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return -λ Q_1(s, π(s)) + (π(s) - a)^2 with λ = alpha / mean |Q_1|."""
        chosen = self.actor(obs)
        value = self.critics(obs, chosen)[0]
        weight = self.settings.alpha / value.abs().mean().detach().clamp(min=1e-7)
        return -weight * value.mean() + F.mse_loss(chosen, actions)


class IQL(_Offline):
    """Implicit Q-learning (Kostrikov et al. 2021): values by expectiles of the data's own actions.

    Args:
        action_dim: Width of an action.
        obs_mean: Mean of the observations, [Do].
        obs_std: Their deviation, [Do].
        settings: Constants.
        seed: Of the networks' start.
        steps: Updates over which the actor's learning rate falls to 0; None keeps it.
    """

    OPTIMIZERS = ("actor_optimizer", "critic_optimizer", "value_optimizer", "schedule")

    def __init__(
        self,
        action_dim: int,
        obs_mean: Tensor,
        obs_std: Tensor,
        settings: IQLSettings | None = None,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        super().__init__(action_dim, obs_mean, obs_std)
        settings = settings or IQLSettings()
        self.settings, obs_dim = settings, len(obs_mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = GaussianActor(obs_dim, action_dim, settings.hidden)
            self.critics = Critics(obs_dim, action_dim, 2, settings.hidden)
            self.value = mlp(obs_dim, 1, settings.hidden)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = _adam(self.actor, settings.learning_rate)
        self.critic_optimizer = _adam(self.critics, settings.learning_rate)
        self.value_optimizer = _adam(self.value, settings.learning_rate)
        self.schedule = steps and torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimizer, steps)

    def update(self, batch: Batch) -> None:
        """Take one step of the value, the critics, the actor and the targets.

        Raises:
            NonFiniteError: When the critics' loss is not finite.
        """
        obs, next_obs = self.normalise(batch.obs), self.normalise(batch.next_obs)
        with torch.no_grad():
            best = self.target_critics(obs, batch.actions).amin(0)
            target = batch.rewards + self.settings.gamma * batch.masks * self.value(next_obs).squeeze(-1)
        advantage = best - self.value(obs).squeeze(-1)
        self._step(self.value_optimizer, expectile_loss(advantage, self.settings.expectile))
        loss = (self.critics(obs, batch.actions) - target).square().mean(1).sum()
        check_finite("critic loss", loss.detach(), self.updates)
        self._step(self.critic_optimizer, loss)
        weight = (self.settings.beta * advantage.detach()).exp().clamp(max=ADVANTAGE_CAP)
        self._step(self.actor_optimizer, -(weight * self.actor.log_prob(obs, batch.actions)).mean())
        polyak(self.target_critics, self.critics, self.settings.tau)
        self.updates += 1
        if self.schedule:
            self.schedule.step()


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Return the mean of |expectile - 1[error < 0]| error^2."""
    return (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()


def _adam(module: nn.Module, learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), learning_rate, eps=1e-8, fused=True)


def save_learner(path: str | Path, learner: TD3BC | IQL) -> None:
    """Write what a learner acts and learns with, but its optimisers, as an artifact."""
    config = {
        "learner": type(learner).__name__,
        "obs_dim": len(learner.obs_mean),
        "action_dim": learner.action_dim,
        "settings": asdict(learner.settings),
        "updates": learner.updates,
    }
    save_artifact(path, LEARNER_KIND, config, learner.state_dict())


def load_learner(path: str | Path) -> TD3BC | IQL:
    """Read a learner that `save_learner` wrote.

    Raises:
        ArtifactError: When it is missing, incomplete or of another kind.
    """
    config, tensors = load_artifact(path, LEARNER_KIND)
    with rebuilding(path, "whole learner"):
        kind, options = {"TD3BC": (TD3BC, TD3BCSettings), "IQL": (IQL, IQLSettings)}[config["learner"]]
        start = torch.zeros(config["obs_dim"]), torch.ones(config["obs_dim"])
        learner = kind(config["action_dim"], *start, options(**config["settings"]))
        learner.load_state_dict(tensors)
        learner.updates = config["updates"]
    return learner


class Draw(Protocol):
    """Batches that a learner learns from; what the next ones depend on is saved and restored."""

    def __call__(self, update: int) -> Batch:
        """Return the batch of an update; they are asked for in order."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        ...


class Draws:
    """Batches of recorded transitions, drawn with replacement.

    Args:
        data: All transitions.
        count: Of a batch.
        seed: Of the draws.
    """

    def __init__(self, data: Batch, count: int, seed: int = 0) -> None:
        check_number("count", count, low=1, integer=True)
        self.data, self.count = data, count
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, update: int) -> Batch:
        """Return a batch."""
        return self.data.sample(self.count, self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the random state."""
        return {"random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.generator.set_state(state["random"])


class _OfflineLoop:
    """Rounds of up to `ROUND` updates."""

    def __init__(self, learner: TD3BC | IQL, draw: Draw, updates: int) -> None:
        self.learner, self.draw, self.updates = learner, draw, updates

    def round(self, step: int) -> dict[str, float]:
        """Take the updates of a round."""
        for number in range(step * ROUND, min((step + 1) * ROUND, self.updates)):
            self.learner.update(self.draw(number))
        return {"updates": float(self.learner.updates)}

    def state_dict(self) -> dict[str, Any]:
        """Return learner and draws."""
        return {"learner": self.learner.training_state(), "draw": self.draw.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.learner.load_training_state(state["learner"])
        self.draw.load_state_dict(state["draw"])


def train_offline(
    learner: TD3BC | IQL,
    draw: Draw,
    updates: int,
    run: "Run | None" = None,
    *,
    checkpoint_every: float = 5.0,
    progress: bool = False,
) -> None:
    """Take updates on the batches that `draw(update)` gives; a run that was stopped goes on to the same numbers.

    Args:
        learner: A new one, changed in place.
        draw: Number of the update -> batch.
        updates: How many.
        run: The open run, None to keep nothing on the way.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every 100 updates.
        progress: Whether to show a bar.

    Raises:
        NonFiniteError: When a loss or a weight is not finite; the last checkpoint stays.
    """
    from noiseworks.kits.training import Fit, make_fabric, rounds

    check_number("updates", updates, low=1, integer=True)
    count = -(-updates // ROUND)
    options = Fit(max_steps=count, device="cpu", checkpoint_every=checkpoint_every, log_every=1)
    loop = _OfflineLoop(learner, draw, updates)
    rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
