"""The on-the-fly policy (section 4.2): sample, edit, and take the candidate of highest value."""

import numpy as np
import torch
from noiseworks.expo.base import BasePolicy
from noiseworks.expo.editing import EditPolicy
from noiseworks.expo.options import Proposals
from noiseworks.kits.rl.networks import Critics
from torch import Tensor, nn


class OnTheFlyPolicy(nn.Module):
    """Base, edits and critics as one policy, which is nowhere a network of its own.

    Args:
        base: Proposes.
        edit: Corrects.
        critics: Judge; target critics, as the paper has it.
        proposals: How many, and how one is chosen.
        subset: Members of the random subset whose least value counts.
        obs_stats: Mean and deviation that observations are standardised with for edits and critics, [Do] each.
    """

    def __init__(
        self,
        base: BasePolicy,
        edit: EditPolicy,
        critics: Critics,
        proposals: Proposals | None = None,
        subset: int = 2,
        obs_stats: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.base, self.edit, self.critics = base, edit, critics
        self.proposals, self.subset = proposals or Proposals(), subset
        mean, std = obs_stats or (torch.zeros(base.obs_dim), torch.ones(base.obs_dim))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.generator = torch.Generator().manual_seed(0)

    def normalise(self, obs: Tensor) -> Tensor:
        """Return observations in the units of edits and critics."""
        return (obs - self.mean) / self.std

    @torch.no_grad()
    def candidates(
        self, obs: Tensor, base: BasePolicy | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the candidates of each observation [B, K, D]: base actions, then edited ones.

        Args:
            obs: Raw observations [B, Do].
            base: Samples instead of the policy's own base.
            generator: Of all noise.
        """
        how = self.proposals
        proposed = (base or self.base).sample(obs, how.n_base, generator)
        if how.keep == "base" or not how.edits:
            return proposed
        chosen = proposed[:, : how.edits]
        noise = torch.randn(chosen.shape, generator=generator).to(chosen)
        seen = self.normalise(obs)[:, None].expand(-1, how.edits, -1)
        edited = self.edit(seen, chosen, noise)[0]
        return edited if how.keep == "edited" else torch.cat((proposed, edited), 1)

    @torch.no_grad()
    def choose(self, obs: Tensor, candidates: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one candidate of each observation, [B, D]; a single one is taken without asking the critics.

        Args:
            obs: Raw observations [B, Do].
            candidates: [B, K, D]; of equal ones the first is taken.
            generator: Of the subset and of soft choices.
        """
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        members = draw_members(self.critics.members, self.subset, generator)
        rows = self.normalise(obs).repeat_interleave(candidates.shape[1], 0)
        values = self.critics(rows, candidates.flatten(0, 1), members).amin(0).view(candidates.shape[:2])
        if self.proposals.select == "soft":
            chances = (self.proposals.soft_scale * values).softmax(1).cpu()
            index = torch.multinomial(chances, 1, generator=generator)[:, 0].to(values.device)
        else:
            index = values.argmax(1)
        return candidates[torch.arange(len(candidates)), index]

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return chunks [B, C, Da] in [-1, 1] for observations [B, Do]."""
        rows = torch.as_tensor(obs, dtype=torch.float32, device=self.mean.device)
        made = self.choose(rows, self.candidates(rows, None, self.generator), self.generator)
        return made.unflatten(1, (self.base.chunk, -1)).cpu().numpy()


def draw_members(members: int, subset: int, generator: torch.Generator | None) -> Tensor:
    """Return the numbers of a random subset of an ensemble, int64 [subset]."""
    return torch.randperm(members, generator=generator)[:subset]
