"""Training: Diffusion-DPO over everybody's choices at once, each told who made it (Dang et al. 2025, section 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.offline import DiffusionDPO
from noiseworks.kits.image_tuning.options import OfflineTuning
from noiseworks.ppd.branch import UserBranch
from noiseworks.ppd.options import Taste
from noiseworks.ppd.users import Users
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_PEOPLE, _CHOICES = 30, 31  # streams of random numbers


class PPD(DiffusionDPO):
    """Trains a user branch; the reference is the pipeline with the branch switched off.

    Args:
        pipe: The pipeline, which gets a branch.
        prompts: The prompts that `ids` number, without repetition.
        latents: Choices, winner first [N, 2, ...].
        ids: Each choice's prompt, int64 [N].
        who: Who made it, a place in `users`, int64 [N].
        users: Everybody's embeddings.
        options: The run.
        settings: How strongly choices count.
        timesteps: Those that are trained, by default all.

    Attributes:
        branch: What is trained.

    Raises:
        InputError: When the parts differ in number.
    """

    kept_as: ClassVar[str] = "user_branch"

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        latents: Tensor,
        ids: Tensor,
        who: Tensor,
        users: Users,
        options: OfflineTuning,
        settings: Taste = Taste(),
        timesteps: Tensor | None = None,
    ) -> None:
        self.who, self.users, self.told = who, users, users.standard
        if len(who) != len(latents):
            raise InputError(f"{len(latents)} choices with {len(who)} users; give one a choice")
        super().__init__(pipe, prompts, latents, ids, options, settings, timesteps)

    def adapt(self) -> dict[str, nn.Parameter]:
        """Put a fresh branch on the denoiser."""
        self.branch = UserBranch.new(self.pipe, self.users.width, self.users.encoder, self.options.seed)
        return self.branch.trainable()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the branch off within a block."""
        with self.branch.off():
            yield

    def save(self, folder: Path) -> None:
        """Write the branch."""
        self.branch.save(folder)

    def draw_rows(self, number: int, count: int) -> Tensor:
        """Return this step's choices [count]: each once before any comes again.

        With `equal_users` each person once before anybody comes again, and of their choices the next one.

        Args:
            number: Choices.
            count: Choices a step.
        """
        if not self.settings.equal_users:
            return super().draw_rows(number, count)
        own = [(self.who == person).nonzero().flatten() for person in self.who.unique()]
        found = []
        for place in range(self.done * count, (self.done + 1) * count):
            turn = place // len(own)
            person = int(self._order(len(own), turn, _PEOPLE)[place % len(own)])
            mine = own[person]
            found.append(mine[self._order(len(mine), turn // len(mine), _CHOICES, person)[turn % len(mine)]])
        return torch.stack(found)

    def _order(self, number: int, *parts: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix64(self.options.seed, *parts) >> 2)
        return torch.randperm(number, generator=generator)

    def further(self, rows: Tensor, generator: torch.Generator) -> Callable[[Tensor], Mapping[str, Any]]:
        """Tell the denoiser who chose: one of their embeddings, the same for winner and loser, at times nobody's."""
        who = self.who[rows]
        which = torch.randint(self.told.shape[1], (len(rows),), generator=generator)
        told = self.told[who, which]
        nobody = torch.rand(len(rows), generator=generator) < self.settings.user_dropout
        told = torch.where(nobody[:, None], 0.0, told)
        return lambda places: self.branch.further(told[places])
