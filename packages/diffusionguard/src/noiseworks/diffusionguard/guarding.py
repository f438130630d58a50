"""DiffusionGuard: the early-stage objective over shrunk masks, in projected gradient steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from noiseworks.diffusionguard.contours import ContourShrink
from noiseworks.diffusionguard.early_stage import EarlyStage
from noiseworks.diffusionguard.options import Guard, Strength
from noiseworks.kits.protection.engine import Gradient, Protected, State, projected_gradient, streams
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.options import Budget, parse_transforms
from noiseworks.kits.protection.transforms import Transformed
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DiffusionGuard:
    """Protects images against an inpainting pipeline.

        with host_of(pipe) as host:
            protected = DiffusionGuard(host).protect(images, masks).images

    Attributes:
        host: The pipeline, from `kits.protection.host_of`.
        budget: How far images may be changed.
        guard: Objective and masks.
        shrink: Mask augmentation; by default with the guard's values.
    """

    host: Host
    budget: Budget = field(default_factory=Strength)
    guard: Guard = field(default_factory=Guard)
    shrink: ContourShrink | None = None

    def protect(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        generators: Sequence[torch.Generator] | None = None,
        state: State | None = None,
        observe: Callable[[State], None] | None = None,
    ) -> Protected:
        """Return protected images; only what the masks keep is changed.

        Args:
            images: [B, 3, H, W] in [0, 1], sides divisible by `host.factor`.
            masks: [B, 1, H, W], 1 where an editor would repaint; without any the whole image is kept (mode global).
            generators: One an image; by default from the budget's seed.
            state: Where an earlier run stopped.
            observe: Called with the state after each step.

        Raises:
            UnsupportedHostError: When the pipeline does not inpaint.
            InputError: When a mask keeps nothing.
        """
        generators = streams(self.budget, len(images)) if generators is None else generators
        keep = None if masks is None else 1 - masks
        # The pool's seed is an image's own first number, so that a pool is the same in every batch and after a stop.
        seeds = [int(g.initial_seed()) for g in generators]
        pools = (
            torch.zeros(len(images), 1, *images[:, :1].shape[1:])
            if masks is None
            else self.pools(masks, seeds)
        )
        objective: Gradient = EarlyStage(
            self.host,
            pools,
            self.host.first_timestep(self.guard.early_steps),
            self.guard.noise_norm,
            two_stages=self.guard.two_stages,
        )
        if self.guard.hardened:
            objective = Transformed(objective, parse_transforms(self.guard.hardened))
        return projected_gradient(
            images, objective, self.budget, support=keep, generators=generators, state=state, observe=observe
        )

    def pools(self, masks: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the masks that are drawn from, [B, n, 1, H, W], each covering what the given one repaints."""
        if self.guard.contours == "single":
            return masks[:, None]
        guard = self.guard
        shrink = self.shrink or ContourShrink(guard.strength, guard.iterations, guard.smoothness)
        keep = masks[:, 0].cpu().numpy() < 0.5
        found = [~shrink.sample(one, guard.pool, seed) for one, seed in zip(keep, seeds, strict=True)]
        return torch.from_numpy(np.stack(found)[:, :, None]).float()
