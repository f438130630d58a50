"""Training of the world model, of the imitating policy and of the classifier, and the start of dreams."""

from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.diwa.dream_ppo import DreamPPO
from noiseworks.diwa.latent_env import Dream, LatentEnv, WorldDream
from noiseworks.diwa.options import Dreaming, ModelFit, ModelSizes, PolicyFit, PolicySizes, RewardFit, Tuning
from noiseworks.diwa.policy import ChainPolicy
from noiseworks.diwa.rewards import Figures, SuccessClassifier, figures, fit_classifier
from noiseworks.diwa.world_model import State, WorldModel, model_loss
from noiseworks.kits.rl.offline import obs_statistics
from noiseworks.kits.rl.stepping import evaluate_returns
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Average, Batches, Run, fit, make_fabric, rounds
from torch import Tensor

MODEL_DECAY, MODEL_EPS, MODEL_CLIP = 0.05, 1e-5, 100.0
POLICY_DECAY, EMA_DECAY = 1e-6, 0.995


class ModelModule(L.LightningModule):
    """The world model's loss under AdamW.

    Args:
        model: The model, whose statistics are set.
        options: Rate, and the decoder's deviation.
    """

    def __init__(self, model: WorldModel, options: ModelFit) -> None:
        super().__init__()
        self.model, self.options = model, options

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of windows."""
        parts = model_loss(self.model, batch["obs"], batch["actions"], self.options.obs_std)
        for name, value in parts.items():
            self.log(f"loss/{name}", value.detach())
        loss = sum(parts.values())
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        rate = self.options.learning_rate
        return torch.optim.AdamW(self.model.parameters(), rate, eps=MODEL_EPS, weight_decay=MODEL_DECAY)


def fit_model(
    transitions: Transitions, sizes: ModelSizes, options: ModelFit, run: Run | None = None
) -> WorldModel:
    """Return a world model of recorded play, which needs no labels.

    Args:
        transitions: Play.
        sizes: Sizes.
        options: Length, windows and bookkeeping.
        run: The open run, None to keep nothing on the way.

    Raises:
        InputError: When no window fits, or there are fewer than a batch.
        NonFiniteError: When the loss is not finite; the last checkpoint stays.
    """
    rows = transitions.windows(options.length)[:, None] + np.arange(options.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        about = {"data": dict(transitions.about)}
        model = WorldModel(transitions.obs_dim, transitions.action_dim, sizes, about)
        for own, found in zip((model.mean, model.std), obs_statistics(transitions), strict=True):
            own.copy_(found)
        table = {
            "obs": torch.from_numpy(transitions.observations[rows]),
            "actions": torch.from_numpy(transitions.actions[rows]),
        }
        batches = Batches(table, options.batch_size, seed=options.seed)
        fit(ModelModule(model, options), batches, run=run, options=options, clip=MODEL_CLIP)
    return model.eval().requires_grad_(False)


class Featurised(tuple):
    """Demonstrations as latents: one `(states [L + 1], actions [L, Da], success bool [L + 1])` an episode."""


def featurise(model: WorldModel, transitions: Transitions, seed: int = 0) -> Featurised:
    """Return demonstrations filtered by a world model, with a label of success for every observation.

    A positive reward, or one that ends the task, marks the observation that it led to.

    Raises:
        InputError: When the data are of another task than the model's.
    """
    widths = transitions.obs_dim, transitions.action_dim
    if widths != (model.obs_dim, model.action_dim):
        raise InputError(
            f"the data have {widths[0]} observations and {widths[1]} actions, the world model {model.obs_dim} and "
            f"{model.action_dim}"
        )
    generator, found = torch.Generator().manual_seed(seed), []
    for a, b in zip(transitions.begins, transitions.ends, strict=True):
        obs = np.concatenate((transitions.observations[a:b], transitions.next_observations[b - 1 : b]))
        actions = torch.from_numpy(transitions.actions[a:b])
        success = np.concatenate(([False], (transitions.rewards[a:b] > 0) | transitions.terminals[a:b]))
        found.append(
            (model.filter(torch.from_numpy(obs), actions, generator), actions, torch.from_numpy(success))
        )
    return Featurised(found)


def starts_of(episodes: Featurised) -> State:
    """Return the first latent of each episode."""
    return State(
        *(
            torch.stack(parts)
            for parts in zip(*((s.deter[0], s.stoch[0]) for s, _, _ in episodes), strict=True)
        )
    )


def decisions_of(episodes: Featurised, chunk: int) -> dict[str, Tensor]:
    """Return the feature of every step and the chunk of actions from it on, the last action repeated at an end."""
    features, chunks = [], []
    for states, actions, _ in episodes:
        index = torch.arange(len(actions))[:, None] + torch.arange(chunk)
        features.append(states.feature[:-1])
        chunks.append(actions[index.clamp(max=len(actions) - 1)])
    return {"feature": torch.cat(features), "actions": torch.cat(chunks).clamp(-1, 1)}


class PolicyModule(L.LightningModule):
    """Imitation under AdamW with a cosine, and the average that acts.

    Args:
        policy: The policy.
        options: Rate and length.
    """

    def __init__(self, policy: ChainPolicy, options: PolicyFit) -> None:
        super().__init__()
        self.policy, self.options = policy, options
        begun = options.max_steps // 20
        self.average = Average(policy.base, lambda update: 0.0 if update < begun else EMA_DECAY)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of decisions."""
        loss = self.policy.loss(batch["feature"], batch["actions"])
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """Return AdamW, whose rate falls to a tenth."""
        rate = self.options.learning_rate
        optimizer = torch.optim.AdamW(self.policy.parameters(), rate, weight_decay=POLICY_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.max_steps, rate / 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.policy.base)


def fit_policy(
    episodes: Featurised, sizes: PolicySizes, options: PolicyFit, run: Run | None = None
) -> ChainPolicy:
    """Return a policy that imitates demonstrations on features, with the averaged weights.

    Args:
        episodes: Featurised demonstrations.
        sizes: Sizes.
        options: Length and bookkeeping.
        run: The open run, None to keep nothing on the way.

    Raises:
        InputError: When there are fewer decisions than a batch.
        NonFiniteError: When the loss is not finite; the last checkpoint stays.
    """
    table = decisions_of(episodes, sizes.chunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        policy = ChainPolicy(table["feature"].shape[1], table["actions"].shape[2], sizes)
        module = PolicyModule(policy, options)
        fit(module, Batches(table, options.batch_size, seed=options.seed), run=run, options=options)
    policy.base.load_state_dict(module.average.model.state_dict())
    return policy.eval().requires_grad_(False)


def fit_reward(
    model: WorldModel, episodes: Featurised, options: RewardFit
) -> tuple[SuccessClassifier, Figures | None]:
    """Return a success classifier, and its figures on real latents of held-out episodes.

    Args:
        model: The world model.
        episodes: Featurised demonstrations.
        options: Sizes and length.

    Raises:
        InputError: When there is no success or no failure.
    """
    generator = torch.Generator().manual_seed(options.reward_seed)
    order = torch.randperm(len(episodes), generator=generator).tolist()
    held = int(options.held_out * len(episodes))
    features, labels = [], []
    for i in order[held:]:
        states, actions, success = episodes[i]
        features.append(states.feature)
        labels.append(success)
        if options.imagined:
            features.append(_imagined(model, states, actions, generator))
            labels.append(success)
    made = fit_classifier(torch.cat(features), torch.cat(labels), options)
    if not held:
        return made, None
    unseen = [episodes[i] for i in order[:held]]
    rows = torch.cat([states.feature for states, _, _ in unseen])
    return made, figures(made, rows, torch.cat([success for _, _, success in unseen]))


@torch.no_grad()
def _imagined(model: WorldModel, states: State, actions: Tensor, generator: torch.Generator) -> Tensor:
    """Return the features that an episode's actions lead to from its first latent, [L + 1, F]."""
    state = State(*(part[:1] for part in states))
    found = [state.feature]
    for action in actions:
        state = model.imagine(state, action[None], generator)
        found.append(state.feature)
    return torch.cat(found)


def tune(
    policy: ChainPolicy,
    dream: WorldDream,
    dreaming: Dreaming,
    options: Tuning,
    run: Run | None = None,
    progress: bool = True,
) -> tuple[ChainPolicy, DreamPPO]:
    """Return a policy tuned in dreams alone, and the loop; no environment is at hand.

    Args:
        policy: The imitating policy, which is left as it is.
        dream: The world model's dreams, of as many rows as are dreamt together.
        dreaming: Episodes.
        options: PPO.
        run: The open run, None to keep nothing on the way.
        progress: Whether to show a bar.

    Raises:
        InputError: When chunk, features or limits do not fit.
        NonFiniteError: When a reward or a loss is not finite; the last checkpoint stays.
    """
    env = LatentEnv(dream, dreaming.envs, policy.chunk, dreaming.limit)
    own = ChainPolicy(policy.features, policy.action_dim, policy.sizes)
    own.base.load_state_dict(policy.base.state_dict())
    loop = DreamPPO(own, env, options, dreaming.decisions)
    rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
    return own.eval(), loop


def dreamt_success(policy: ChainPolicy, dream: Dream, limit: int, seed: int = 0) -> np.ndarray:
    """Return whether a dreamt episode of each row succeeds, bool [N], with as little noise as on a real robot.

    Args:
        policy: The policy.
        dream: A law of motion of N rows, such as the world model's.
        limit: Actions after which an episode is cut.
        seed: Of starts and draws.
    """
    rows, generator = len(dream.feature()), torch.Generator().manual_seed(seed)

    def act(seen: np.ndarray) -> np.ndarray:
        return policy.act(torch.from_numpy(seen), generator).numpy()

    return evaluate_returns(LatentEnv(dream, rows, policy.chunk, limit), act, rows, seed).success
