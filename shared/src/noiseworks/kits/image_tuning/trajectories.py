"""Stored rollouts: all latents of each chain, what it was drawn with, and what it is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import ArtifactError
from torch import Tensor

KIND = "image-tuning/trajectories"


@dataclass(frozen=True, eq=False)
class Trajectories:
    """N rollouts of T steps, on the CPU.

    A rollout of Stable Diffusion at T = 20 takes 21 * 16,384 * 2 bytes in float16, 0.7 MB.

    Attributes:
        prompts: The texts that `prompt_ids` number.
        latents: x_T first, then what each step drew [N, T + 1, ...].
        log_probs: Of each step when it was drawn [N, T].
        prompt_ids: int64 [N].
        seeds: Of each rollout's step noise, int64 [N].
        rewards: One or several numbers a rollout, float32 [N, m]; None before they are scored.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    log_probs: Tensor
    prompt_ids: Tensor
    seeds: Tensor
    rewards: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def x_t(self) -> Tensor:
        """What each step started from [N, T, ...]."""
        return self.latents[:, :-1]

    @property
    def x_prev(self) -> Tensor:
        """What each step drew [N, T, ...]."""
        return self.latents[:, 1:]

    @property
    def texts(self) -> list[str]:
        """Each rollout's prompt."""
        return [self.prompts[i] for i in self.prompt_ids.tolist()]

    def select(self, rows: Tensor) -> "Trajectories":
        """Return some of the rollouts, in the given order."""
        rewards = None if self.rewards is None else self.rewards[rows]
        parts = (part[rows] for part in (self.latents, self.log_probs, self.prompt_ids, self.seeds))
        return Trajectories(self.prompts, *parts, rewards)

    def with_rewards(self, rewards: Tensor) -> "Trajectories":
        """Return the same rollouts with their rewards [N] or [N, m]."""
        return replace(self, rewards=rewards.float().reshape(len(self), -1))

    def save(self, folder: str | Path, fingerprint: str) -> None:
        """Write them as an artifact.

        Args:
            folder: Folder to make, or to replace when it holds trajectories.
            fingerprint: `Policy.fingerprint` of what drew them.
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_artifact(folder, KIND, {"fingerprint": fingerprint, "prompts": list(self.prompts)}, tensors)

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str | None = None) -> "Trajectories":
        """Read what `save` wrote.

        Args:
            folder: The folder.
            fingerprint: `Policy.fingerprint` of what they are to be scored with.

        Raises:
            ArtifactError: When the folder holds none, or they were drawn with other settings or another model.
        """
        config, tensors = load_artifact(folder, KIND)
        if fingerprint is not None and config.get("fingerprint") != fingerprint:
            raise ArtifactError(
                f"the trajectories in {folder} were drawn with another model, scheduler, number of steps, eta or "
                "guidance; train with those, or draw them again"
            )
        return cls(tuple(config["prompts"]), **tensors)


def join_trajectories(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the rollouts of all parts, which number the same prompts, one behind the other."""
    first = parts[0]
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(first).items()
        if isinstance(value, Tensor)
    }
    return replace(first, **tensors)
