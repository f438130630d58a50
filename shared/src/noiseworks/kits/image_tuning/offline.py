"""Tuning on finished images: fine-tuning by the denoising error, and Diffusion-DPO on pairs of them.

Source: Wallace et al. 2024, arXiv 2311.12908, eq. 14, as its authors' code and the example of diffusers compute it:
winner and loser share timestep and noise, errors are means over elements.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.image_tuning.denoising import DenoisingError
from noiseworks.kits.image_tuning.options import OfflineTuning, PairLoss, Rollout
from noiseworks.kits.image_tuning.preferences import denoising_delta, implicit_accuracy, preference_link
from noiseworks.kits.image_tuning.tuner import UNGUIDED, Losses, Tuner
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class OfflineTuner(Tuner):
    """Base of tuning on latents of finished images.

    Args:
        pipe: The pipeline.
        prompts: The prompts that `ids` number, without repetition.
        latents: One row an image or a group of images, on the CPU [N, ...].
        ids: Each row's prompt, int64 [N].
        options: The run; a step takes `batch_size` of the rows.
        timesteps: Those that are trained, by default all.
        rollout: How the policy draws, where it does.

    Attributes:
        error: The denoising error under the present weights.

    Raises:
        InputError: When there are no rows, or rows and numbers differ.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        latents: Tensor,
        ids: Tensor,
        options: OfflineTuning,
        timesteps: Tensor | None = None,
        rollout: Rollout = UNGUIDED,
    ) -> None:
        super().__init__(pipe, prompts, None, options, rollout)
        if not len(latents) or len(latents) != len(ids):
            raise InputError(f"{len(latents)} rows of latents with {len(ids)} prompt numbers; give one a row")
        if int(ids.max()) >= len(self.policy.prompts):
            raise InputError(f"prompt number {int(ids.max())} of {len(self.policy.prompts)} prompts")
        self.latents, self.ids, self.timesteps = latents, ids, timesteps
        self.error = DenoisingError(self.policy)

    def draw(self, own_noise: bool = False) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Return what a step is made of: rows [n], their timesteps [n], noise, and a generator for more.

        Args:
            own_noise: Whether each member of a group has noise of its own [n, k, ...] instead of [n, ...].
        """
        rows = self.draw_rows(len(self.latents), self.options.batch_size)
        generator = torch.Generator().manual_seed(self.seed(9))
        timesteps = self.error.draw_timesteps(len(rows), generator, self.timesteps)
        dims = len(self.policy.conditions.shape)
        shape = self.latents.shape[1:] if own_noise else self.latents.shape[-dims:]
        return rows, timesteps, torch.randn(len(rows), *shape, generator=generator), generator

    def figures(self, found: Mapping[str, float]) -> dict[str, float]:
        """Return a step's figures with the denoiser's calls so far."""
        return {**found, "calls": float(self.policy.calls * self.fabric.world_size)}


class Supervised(OfflineTuner):
    """Fine-tuning by the denoising error: the cheapest alternative to every preference method."""

    def round(self, step: int) -> Mapping[str, float]:
        """Do one optimiser step."""
        rows, timesteps, noise, _ = self.draw()

        def losses(own: Tensor) -> Losses:
            taken = rows[own]
            return Losses(self.error(self.latents[taken], self.ids[taken], timesteps[own], noise[own]))

        return self.figures(self.descend(losses, len(rows)))


class DiffusionDPO(OfflineTuner):
    """Diffusion-DPO; rows are pairs, winner first [N, 2, ...]. Methods on pairs override `loss` or `further`.

    Args:
        pipe: The pipeline.
        prompts: The prompts that `ids` number, without repetition.
        latents: Pairs, winner first [N, 2, ...].
        ids: Each pair's prompt, int64 [N].
        options: The run.
        settings: How strongly pairs count.
        timesteps: Those that are trained, by default all.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        latents: Tensor,
        ids: Tensor,
        options: OfflineTuning,
        settings: PairLoss = PairLoss(),
        timesteps: Tensor | None = None,
    ) -> None:
        super().__init__(pipe, prompts, latents, ids, options, timesteps)
        self.settings = settings
        if latents.ndim != len(self.policy.conditions.shape) + 2 or latents.shape[1] != 2:
            raise InputError(f"pairs of latents have shape [N, 2, ...], got {list(latents.shape)}")

    def further(self, rows: Tensor, generator: torch.Generator) -> Callable[[Tensor], Mapping[str, Any]]:
        """Return what gives more arguments of the denoiser for members of a step's pairs, by the pairs' places [m].

        Args:
            rows: The step's pairs [n].
            generator: Of what is drawn for them.
        """
        return lambda places: {}

    def loss(self, errors: Tensor, reference_errors: Tensor) -> Losses:
        """Return the losses of errors under policy and reference, both [n, 2]."""
        z = -denoising_delta(errors, reference_errors)
        values = preference_link(z, self.settings.kappa, self.settings.link)
        return Losses(values, {"accuracy": implicit_accuracy(z), "margin": z})

    def round(self, step: int) -> Mapping[str, float]:
        """Do one optimiser step."""
        rows, timesteps, noise, generator = self.draw()
        further = self.further(rows, generator)

        def losses(own: Tensor) -> Losses:
            taken = rows[own]
            pairs = (self.latents[taken], self.ids[taken], timesteps[own], noise[own])
            more = further(own.repeat_interleave(2))
            with torch.no_grad(), self.reference():
                reference_errors = self.error.of_groups(*pairs, more)
            return self.loss(self.error.of_groups(*pairs, more), reference_errors)

        return self.figures(self.descend(losses, len(rows)))
