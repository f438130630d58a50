"""Training: imitation of the base, and rounds of episodes and updates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.expo.base import BasePolicy, GenerativeBase
from noiseworks.expo.learner import ExpoLearner
from noiseworks.expo.options import BaseSizes, Learning, Pretraining, Proposals, Training
from noiseworks.kits.rl.offline import Batch, obs_statistics
from noiseworks.kits.rl.replay import ReplayBuffer, mixed
from noiseworks.kits.rl.stepping import collect_episodes
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Batches, Run, fit, make_fabric, rounds
from torch import Tensor

SLACK = 1e-3  # by which recorded actions may leave their box, as rounding does


@dataclass(frozen=True)
class ActionBox:
    """The bounds of a single action, which decisions in [-1, 1] are scaled to.

    Attributes:
        low: float32 [Da].
        high: float32 [Da].
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, env: VectorEnv, chunk: int) -> "ActionBox":
        """Return the bounds of an environment's actions.

        Raises:
            InputError: When they are no bounded vector, or the environment plays chunks of another length.
        """
        space = env.single_action_space
        if not isinstance(space, Box) or not space.is_bounded():
            raise InputError(f"EXPO edits bounded vectors of actions, the environment takes {space}")
        low, high = np.atleast_2d(space.low), np.atleast_2d(space.high)
        if len(low) != chunk:
            raise InputError(
                f"the policy decides chunks of {chunk} actions, the environment plays {len(low)}"
            )
        return cls(low[0], high[0])

    def unscale(self, decisions: np.ndarray) -> np.ndarray:
        """Return actions of the environment for decisions [..., Da] in [-1, 1]."""
        return self.low + (decisions + 1) / 2 * (self.high - self.low)

    def scale(self, actions: np.ndarray) -> np.ndarray:
        """Return actions [..., Da] of the environment in [-1, 1].

        Raises:
            InputError: When they lie outside of the box.
        """
        scaled = 2 * (actions - self.low) / (self.high - self.low) - 1
        if (largest := float(np.abs(scaled).max())) > 1 + SLACK:
            raise InputError(
                f"recorded actions reach {largest:.3g} times the environment's bounds: scale them, or name its data"
            )
        return np.clip(scaled, -1, 1)


def decisions_of(transitions: Transitions, chunk: int, box: ActionBox | None = None) -> Batch:
    """Return recorded transitions as decisions of `chunk` actions in [-1, 1], one from every step on."""
    runs = transitions.chunked(chunk, stride=1)
    box = box or ActionBox(np.array(-1.0), np.array(1.0))
    actions = box.scale(runs.actions.reshape(len(runs), chunk, -1)).reshape(len(runs), -1)
    return Batch.of(runs)._replace(actions=torch.as_tensor(actions, dtype=torch.float32))


class ImitationModule(L.LightningModule):
    """The base's loss under AdamW with a cosine.

    Args:
        base: The base.
        options: Rate and length.
    """

    def __init__(self, base: BasePolicy, options: Pretraining) -> None:
        super().__init__()
        self.base, self.options = base, options

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of decisions."""
        loss = self.base.loss(batch["obs"], batch["actions"])
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """Return AdamW, whose rate falls to 0."""
        optimizer = torch.optim.AdamW(self.base.parameters(), self.options.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrain(
    transitions: Transitions, sizes: BaseSizes, options: Pretraining, run: Run | None = None
) -> GenerativeBase:
    """Return a base that imitates recorded experience.

    Args:
        transitions: What was recorded, actions in [-1, 1].
        sizes: The base.
        options: Length, rate and bookkeeping.
        run: The open run, None to keep nothing on the way.

    Raises:
        InputError: When actions leave [-1, 1] or there are fewer decisions than a batch.
        NonFiniteError: When the loss is not finite; the last checkpoint stays.
    """
    rows = decisions_of(transitions, sizes.chunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        base = GenerativeBase(transitions.obs_dim, transitions.action_dim, sizes)
        for own, found in zip((base.mean, base.std), obs_statistics(transitions), strict=True):
            own.copy_(found)
        batches = Batches({"obs": rows.obs, "actions": rows.actions}, options.batch_size, seed=options.seed)
        fit(ImitationModule(base, options), batches, run=run, options=options)
    return base.eval().requires_grad_(False)


class ExpoLoop:
    """Rounds: one episode in every environment, then the updates that its decisions are worth.

    Episodes are whole, so that a run can be stopped between rounds and go on to the same numbers.

    Args:
        learner: The learner.
        env: Environments that play the base's chunks.
        recorded: Recorded decisions, or None.
        options: Batch size and seed.

    Attributes:
        decisions: Taken so far.
        steps: Steps of the environments so far.
    """

    def __init__(
        self, learner: ExpoLearner, env: VectorEnv, recorded: Batch | None, options: Training
    ) -> None:
        self.learner, self.env, self.recorded, self.options = learner, env, recorded, options
        base, learning = learner.base, learner.learning
        self.box = ActionBox.of(env, base.chunk)
        self.replay = ReplayBuffer(learning.capacity, base.obs_dim, base.action_dim)
        self.decisions, self.steps = 0, 0

    def round(self, step: int) -> dict[str, float]:
        """Act, then learn.

        Raises:
            NonFiniteError: When a reward or a loss is not finite.
        """
        before = self.decisions
        made = collect_episodes(
            self.env,
            self._act,
            mix64(self.options.seed, step, 7) % 2**31,
            after=lambda result: check_finite("reward", torch.as_tensor(result.rewards), step),
        )
        scaled = self.box.scale(made.actions.reshape(len(made), self.learner.base.chunk, -1))
        rows = torch.as_tensor(scaled.reshape(len(made), -1), dtype=torch.float32)
        self.replay.add(Batch.of(made)._replace(actions=rows))
        self.decisions, self.steps = before + len(made), self.steps + made.about["steps"]
        figures = {
            "reward": float(made.returns().mean()),
            "decisions": self.decisions,
            "env_steps": self.steps,
        }
        learning, rows_each = self.learner.learning, self.options.batch_size
        for _ in range(max(0, self.decisions - max(before, learning.warmup))):
            batch = mixed(
                self.replay,
                self.recorded,
                rows_each * learning.utd,
                learning.offline_share,
                self.learner.generator,
            )
            figures |= self.learner.update(batch)
        return figures

    def _act(self, obs: np.ndarray) -> np.ndarray:
        learner, base, generator = self.learner, self.learner.base, self.learner.policy.generator
        if self.decisions >= learner.learning.warmup:
            return self._played(learner.policy.act(obs))
        if learner.learning.warmup_policy == "uniform":
            made = 2 * torch.rand((len(obs), base.action_dim), generator=generator) - 1
        else:
            made = base.sample(torch.as_tensor(obs, dtype=torch.float32), 1, generator)[:, 0]
        return self._played(made.unflatten(1, (base.chunk, -1)).numpy())

    def _played(self, chunks: np.ndarray) -> np.ndarray:
        actions = self.box.unscale(chunks)
        return actions if len(self.env.single_action_space.shape) == 2 else actions[:, 0]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on."""
        return {
            "learner": self.learner.training_state(),
            "replay": self.replay.state_dict(),
            "decisions": self.decisions,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.learner.load_training_state(state["learner"])
        self.replay.load_state_dict(state["replay"])
        self.decisions, self.steps = state["decisions"], state["steps"]


def recorded_decisions(transitions: Transitions, base: BasePolicy, box: ActionBox) -> Batch:
    """Return recorded experience as a base's decisions.

    Raises:
        InputError: When it is of another task, or actions leave the box.
    """
    widths = transitions.obs_dim, transitions.action_dim * base.chunk
    if widths != (base.obs_dim, base.action_dim):
        raise InputError(
            f"the data have {widths[0]} observations and decisions of {widths[1]} numbers, the policy {base.obs_dim} "
            f"and {base.action_dim}"
        )
    return decisions_of(transitions, base.chunk, box)


def train(
    base: BasePolicy,
    env: VectorEnv,
    transitions: Transitions | None,
    settings: tuple[Proposals, Learning, Training],
    run: Run | None = None,
    progress: bool = True,
) -> tuple[ExpoLearner, ExpoLoop]:
    """Return a trained learner, and the loop with what it counted.

    Args:
        base: A trained base; a copy of it learns.
        env: Environments that play its chunks.
        transitions: Recorded experience in the environment's units, or None.
        settings: Candidates, learning, length.
        run: The open run, None to keep nothing on the way.
        progress: Whether to show a bar.

    Raises:
        InputError: When widths, bounds or chunks do not fit.
        NonFiniteError: When a reward or a loss is not finite; the last checkpoint stays.
    """
    proposals, learning, options = settings
    box = ActionBox.of(env, base.chunk)
    recorded, stats = None, (torch.zeros(base.obs_dim), torch.ones(base.obs_dim))
    if transitions is not None:
        recorded, stats = recorded_decisions(transitions, base, box), obs_statistics(transitions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        own = base.averaged().requires_grad_(True) if learning.train_base else base
        learner = ExpoLearner(own, stats, proposals, learning, options.seed)
        loop = ExpoLoop(learner, env, recorded, options)
        rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
    return learner, loop
