"""The update (algorithm 1): many critic steps, then one of the base, the edit policy and the temperature."""

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.expo.base import BasePolicy
from noiseworks.expo.editing import REACHABLE, EditPolicy, target_entropy
from noiseworks.expo.on_the_fly import OnTheFlyPolicy, draw_members
from noiseworks.expo.options import Learning, Proposals
from noiseworks.kits.rl.networks import Critics, polyak
from noiseworks.kits.rl.offline import Batch
from torch import Tensor, nn


class EditLoss(NamedTuple):
    """What an edit step is taken by.

    Attributes:
        loss: alpha log p - mean_i Q_i(s, a~), mean over the batch.
        entropy: -mean log p, detached.
    """

    loss: Tensor
    entropy: Tensor


class ExpoLearner(nn.Module):
    """All networks and optimisers; `policy` acts with the base's average and the target critics.

    Args:
        base: The base, which comes trained.
        obs_stats: Mean and deviation of observations, [Do] each.
        proposals: Candidates.
        learning: Settings.
        seed: Of the networks' start and of all draws.

    Raises:
        InputError: When the base shall learn and cannot.
    """

    def __init__(
        self,
        base: BasePolicy,
        obs_stats: tuple[Tensor, Tensor],
        proposals: Proposals | None = None,
        learning: Learning | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        learning, proposals = learning or Learning(), proposals or Proposals()
        self.learning, self.proposals = learning, proposals
        sizes = (learning.critic_hidden, learning.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.edit = EditPolicy(
                base.obs_dim, base.action_dim, proposals.edit_scale, proposals.masked or (), base.chunk, sizes
            )
            self.critics = Critics(base.obs_dim, base.action_dim, learning.critics, *sizes, layer_norm=True)
        self.base = base
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        averaged = base.averaged() if learning.train_base else base
        self.policy = OnTheFlyPolicy(
            averaged, self.edit, self.target_critics, proposals, learning.subset, obs_stats
        )
        self.wanted = target_entropy(self.edit.dims, proposals.edit_scale, learning.target_entropy)
        if self.wanted > self.edit.dims * math.log(2 * proposals.edit_scale):
            warnings.warn(
                f"edits of scale {proposals.edit_scale:g} cannot have the entropy {self.wanted:.3g}: the temperature "
                f"grows without bound below a scale of {REACHABLE:.3f}; take target_entropy corrected",
                stacklevel=2,
            )
        rate = learning.learning_rate
        trained = {"critics": self.critics, "edit": self.edit}
        self.optimizers = {name: torch.optim.Adam(part.parameters(), rate) for name, part in trained.items()}
        if learning.train_base:
            self.optimizers["base"] = torch.optim.AdamW(base.parameters(), rate)
        self.optimizers["alpha"] = torch.optim.Adam([self.log_alpha], rate)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def alpha(self) -> float:
        """The temperature."""
        return float(self.log_alpha.detach().exp())

    def update(self, batch: Batch) -> dict[str, float]:
        """Take `utd` critic steps on equal parts of a batch, then one of each other part on the last; return figures.

        Base and edits do not change while the critics learn, so the candidates of all next observations are drawn in
        one call; only their scores wait for the critics.

        Args:
            batch: utd B transitions with raw observations.

        Raises:
            InputError: When the batch does not divide.
            NonFiniteError: When a loss is not finite.
        """
        utd, rows = self.learning.utd, len(batch.rewards)
        if rows % utd:
            raise InputError(f"a batch must be a multiple of utd ({utd}), got {rows} rows")
        candidates = self.next_candidates(batch.next_obs)
        parts = torch.arange(rows).view(utd, -1)
        for part in parts:
            last = batch.rows(part)
            loss = self.critic_step(last, candidates[part])
        figures = {"critic": float(loss)}
        if self.learning.train_base:
            figures["base"] = float(self.base_step(last))
        if self.proposals.edits and self.proposals.keep != "base":
            figures |= self.edit_step(last)
        return figures

    def next_candidates(self, next_obs: Tensor) -> Tensor:
        """Return the candidates that the target's policy chooses from, of the base itself and not its average."""
        if self.learning.backup == "base":
            return self.base.sample(next_obs, 1, self.generator).detach()
        return self.policy.candidates(next_obs, self.base, self.generator)

    def target(self, batch: Batch, candidates: Tensor) -> Tensor:
        """Return y = r + gamma mask min Qbar(s', OTF(s')) [B]; another random pair chooses than judges, no entropy."""
        with torch.no_grad():
            chosen = self.policy.choose(batch.next_obs, candidates, self.generator)
            members = draw_members(self.learning.critics, self.learning.subset, self.generator)
            value = self.target_critics(self.policy.normalise(batch.next_obs), chosen, members).amin(0)
            return batch.rewards + self.learning.gamma * batch.masks * value

    def critic_step(self, batch: Batch, candidates: Tensor) -> Tensor:
        """Take one step of the critics and of their targets; return the loss before it."""
        target = self.target(batch, candidates)
        values = self.critics(self.policy.normalise(batch.obs), batch.actions)
        loss = (values - target).square().mean()
        check_finite("critic loss", loss.detach())
        self._step("critics", loss)
        polyak(self.target_critics, self.critics, self.learning.tau)
        return loss.detach()

    def base_step(self, batch: Batch) -> Tensor:
        """Take one imitation step of the base and move its average; return the loss before it."""
        self.base.train()
        loss = self.base.loss(batch.obs, batch.actions, self.generator)
        self.base.eval()
        check_finite("base loss", loss.detach())
        self._step("base", loss)
        polyak(self.policy.base, self.base, self.learning.base_tau)
        return loss.detach()

    def edit_loss(self, batch: Batch) -> EditLoss:
        """Return the loss of the edit policy on the actions of a batch, or on fresh samples of the base."""
        proposed = batch.actions
        if self.learning.edit_base == "policy":
            proposed = self.base.sample(batch.obs, 1, self.generator)[:, 0].detach()
        obs, noise = self.policy.normalise(batch.obs), torch.randn(proposed.shape, generator=self.generator)
        edited, log_prob = self.edit(obs, proposed, noise.to(proposed))
        loss = (self.log_alpha.detach().exp() * log_prob - self.critics(obs, edited).mean(0)).mean()
        return EditLoss(loss, -log_prob.mean().detach())

    def edit_step(self, batch: Batch) -> dict[str, float]:
        """Take one step of the edit policy and of the temperature; return loss, entropy and temperature."""
        self.critics.requires_grad_(False)  # no gradient of the edit's loss reaches them
        found = self.edit_loss(batch)
        check_finite("edit loss", found.loss.detach())
        self._step("edit", found.loss)
        self.critics.requires_grad_(True)
        self._step("alpha", self.log_alpha.exp() * (found.entropy - self.wanted))
        return {"edit": float(found.loss.detach()), "entropy": float(found.entropy), "alpha": self.alpha}

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def training_state(self) -> dict[str, Any]:
        """Return networks, optimisers and random state."""
        return {
            "networks": self.state_dict(),
            "optimizers": {name: one.state_dict() for name, one in self.optimizers.items()},
            "random": self.generator.get_state(),
            "acting": self.policy.generator.get_state(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `training_state`."""
        self.load_state_dict(state["networks"])
        for name, one in self.optimizers.items():
            one.load_state_dict(state["optimizers"][name])
        self.generator.set_state(state["random"])
        self.policy.generator.set_state(state["acting"])
