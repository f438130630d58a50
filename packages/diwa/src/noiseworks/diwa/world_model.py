"""The world model (section 3.1): a recurrent state-space model with categorical latents (DreamerV2's)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.diwa.options import ModelSizes
from torch import Tensor, nn

KIND = "diwa/world-model"
KL_WEIGHT, POSTERIOR_SHARE = 0.3, 0.2
NORM_EPS = 1e-3


class State(NamedTuple):
    """A latent state of B rows.

    Attributes:
        deter: h, [B, H].
        stoch: z, one-hot in each group, [B, G C].
    """

    deter: Tensor
    stoch: Tensor

    @property
    def feature(self) -> Tensor:
        """[h; z], [B, F]."""
        return torch.cat(self, -1)

    def where(self, rows: Tensor, other: "State") -> "State":
        """Return other's rows where set, bool [B], and these elsewhere."""
        return State(*(torch.where(rows[:, None], b, a) for a, b in zip(self, other, strict=True)))


class WorldModel(nn.Module):
    """Encoder, cell, prior, posterior and decoder of observations that are vectors.

    Args:
        obs_dim: Width of an observation.
        action_dim: Width of an action.
        sizes: Sizes.
        about: What it was trained on, for JSON.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        sizes: ModelSizes | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_number("obs_dim", obs_dim, low=1, integer=True)
        check_number("action_dim", action_dim, low=1, integer=True)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.sizes, self.about = sizes or ModelSizes(), about or {}
        width, stoch = self.sizes.width, self.sizes.groups * self.sizes.classes
        self.encoder = nn.Sequential(nn.Linear(obs_dim, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.decoder = nn.Sequential(
            nn.Linear(self.sizes.features, width),
            nn.ELU(),
            nn.Linear(width, width),
            nn.ELU(),
            nn.Linear(width, obs_dim),
        )
        self.of_stoch, self.of_action = nn.Linear(stoch, width), nn.Linear(action_dim, width, bias=False)
        self.joined, self.cell = nn.LayerNorm(width, NORM_EPS), nn.GRUCell(width, self.sizes.deter)
        self.prior = nn.Sequential(nn.Linear(self.sizes.deter, width), nn.ELU(), nn.Linear(width, stoch))
        self.of_deter, self.of_obs = nn.Linear(self.sizes.deter, width), nn.Linear(width, width, bias=False)
        self.seen, self.posterior = nn.LayerNorm(width, NORM_EPS), nn.Linear(width, stoch)
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))

    def begin(self, rows: int) -> State:
        """Return the state before anything has been seen."""
        size = (rows, self.sizes.groups * self.sizes.classes)
        return State(self.mean.new_zeros(rows, self.sizes.deter), self.mean.new_zeros(size))

    def observe(
        self, state: State, action: Tensor, obs: Tensor, generator: torch.Generator | None = None
    ) -> tuple[State, Tensor, Tensor]:
        """Return the state after an action and what was then seen, with the logits of posterior and prior [B, G, C].

        Args:
            state: Before the action.
            action: The action that led to the observation, [B, Da]; zeros at an episode's start.
            obs: Raw observation [B, Do].
            generator: Of the draw of z.
        """
        deter = self._step(state, self.of_action(action))
        posterior = self._posterior(deter, self._embed(obs))
        return State(deter, draw(posterior, generator)), posterior, self._grouped(self.prior(deter))

    def imagine(self, state: State, action: Tensor, generator: torch.Generator | None = None) -> State:
        """Return the state that an action leads to in a dream."""
        deter = self._step(state, self.of_action(action))
        return State(deter, draw(self._grouped(self.prior(deter)), generator))

    def follow(
        self, obs: Tensor, before: Tensor, generator: torch.Generator | None = None
    ) -> tuple[State, Tensor, Tensor]:
        """Return the states [B, L, ...] of windows from an empty one, with logits of posterior and prior [B, L, G, C].

        As `observe` step by step; what does not depend on the states is computed for all steps at once.

        Args:
            obs: Raw observations [B, L, Do].
            before: The actions that led to them, [B, L, Da].
            generator: Of the draws of z.
        """
        embedded, moved = self._embed(obs), self.of_action(before)
        state, states, posteriors = self.begin(len(obs)), [], []
        for t in range(obs.shape[1]):
            deter = self._step(state, moved[:, t])
            posteriors.append(self._posterior(deter, embedded[:, t]))
            state = State(deter, draw(posteriors[-1], generator))
            states.append(state)
        states = State(*(torch.stack(parts, 1) for parts in zip(*states, strict=True)))
        return states, torch.stack(posteriors, 1), self._grouped(self.prior(states.deter))

    def decode(self, state: State) -> Tensor:
        """Return raw observations [B, Do]."""
        return self.decoder(state.feature) * self.std + self.mean

    def _step(self, state: State, moved: Tensor) -> Tensor:
        joined = F.elu(self.joined(self.of_stoch(state.stoch) + moved))
        return self.cell(joined, state.deter)

    def _embed(self, obs: Tensor) -> Tensor:
        return self.of_obs(self.encoder((obs - self.mean) / self.std))

    def _posterior(self, deter: Tensor, embedded: Tensor) -> Tensor:
        return self._grouped(self.posterior(F.elu(self.seen(self.of_deter(deter) + embedded))))

    def _grouped(self, logits: Tensor) -> Tensor:
        return logits.float().unflatten(-1, (self.sizes.groups, self.sizes.classes))

    @torch.no_grad()
    def filter(self, obs: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> State:
        """Return the states of an episode's observations, [L + 1, ...] from obs [L + 1, Do] and actions [L, Da]."""
        before = torch.cat((torch.zeros_like(actions[:1]), actions))
        state, found = self.begin(1), []
        for action, seen in zip(before, obs, strict=True):
            state = self.observe(state, action[None], seen[None], generator)[0]
            found.append(state)
        return State(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def config(self) -> dict[str, Any]:
        """Return what is needed besides weights to make the model again, as plain values."""
        sizes = {"obs_dim": self.obs_dim, "action_dim": self.action_dim, "sizes": asdict(self.sizes)}
        return sizes | {"about": self.about}

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        save_artifact(path, KIND, self.config(), self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "WorldModel":
        """Read a model that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        return cls.from_parts(*load_artifact(path, KIND), path=path)

    @classmethod
    def from_parts(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], path: object = "it"
    ) -> "WorldModel":
        """Return a model of a config and weights.

        Raises:
            ArtifactError: When they are not whole.
        """
        with rebuilding(path, "whole world model"):
            sizes = ModelSizes(**config["sizes"])
            model = cls(config["obs_dim"], config["action_dim"], sizes, config["about"])
            model.load_state_dict({name: t.float() for name, t in tensors.items()})
        return model.eval().requires_grad_(False)


def draw(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return one-hot draws [B, G C] of logits [B, G, C], whose gradient is that of the probabilities."""
    probs = logits.softmax(-1)
    uniform = torch.rand(logits.shape, generator=generator).to(logits)
    index = (logits - torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))).argmax(-1)
    hot = F.one_hot(index, logits.shape[-1]).to(probs)
    return (hot + probs - probs.detach()).flatten(1)


def balanced_kl(posterior: Tensor, prior: Tensor) -> Tensor:
    """Return 0.3 [0.2 KL(post || sg prior) + 0.8 KL(sg post || prior)], summed over groups, [...].

    Its value is 0.3 KL; the prior is drawn to the posterior more than the other way round.
    """
    own = _kl(posterior, prior.detach())
    theirs = _kl(posterior.detach(), prior)
    return KL_WEIGHT * (POSTERIOR_SHARE * own + (1 - POSTERIOR_SHARE) * theirs)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    a, b = first.log_softmax(-1), second.log_softmax(-1)
    return (a.exp() * (a - b)).sum((-1, -2))


def model_loss(model: WorldModel, obs: Tensor, actions: Tensor, obs_std: float = 1.0) -> dict[str, Tensor]:
    """Return the parts of the loss of windows, each a mean over windows and steps.

    Both are multiplied by the decoder's variance, so that gradients do not grow as it falls.

    Args:
        model: The model.
        obs: Raw observations [B, L, Do].
        actions: Of the same steps, [B, L, Da]; the last one is not read.
        obs_std: Deviation of the decoder, in deviations of the data.
    """
    before = torch.cat((torch.zeros_like(actions[:, :1]), actions[:, :-1]), 1)
    states, posterior, prior = model.follow(obs, before)
    away = model.decoder(states.feature) - (obs - model.mean) / model.std
    return {
        "reconstruction": 0.5 * away.square().sum(-1).mean(),
        "kl": obs_std**2 * balanced_kl(posterior, prior).mean(),
    }
