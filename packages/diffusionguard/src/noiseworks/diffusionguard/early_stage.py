"""The early-stage objective: the norm of the noise that an inpainting model predicts in its first step.

L = -|eps_theta(cat[z, m, c], t*, tau)|, with z pure noise, m the mask, c = s E(x * (M = 0)) the masked image's latent,
t* the first timestep of a short schedule and tau the prompt, empty in the paper. One pass of the U-Net, no sampling
chain, no target. Source: arXiv 2410.05694, section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.protection.engine import draw_normal
from noiseworks.kits.protection.hosts import Host
from noiseworks.kits.protection.objectives import through_encoder
from torch import Tensor

Norm = Literal["l2", "l2sq", "l1"]


def early_stage_loss(predicted: Tensor) -> Tensor:
    """Return -|eps| / B with one Euclidean norm over the whole batch [B, C, h, w], as the released code does."""
    return -predicted.norm() / len(predicted)


def noise_norms(predicted: Tensor, norm: Norm = "l2") -> Tensor:
    """Return the norm of each image's predicted noise, [B].

    The gradient of the joint norm is that of these norms up to a positive factor an image, so its signs are the same.
    """
    flat = predicted.flatten(1)
    if norm == "l1":
        return flat.abs().sum(dim=1)
    return flat.norm(dim=1) if norm == "l2" else flat.square().sum(dim=1)


def check_inpaints(host: Host) -> None:
    """Refuse a model without a mask.

    Raises:
        UnsupportedHostError: Naming the method for such models.
    """
    if not host.inpaints:
        raise UnsupportedHostError(
            "DiffusionGuard attacks inpainting models, whose U-Net takes a mask; for others use diff-protect"
        )


@dataclass
class EarlyStage:
    """The objective as the engine of `kits.protection` takes it.

    Attributes:
        host: A pipeline that inpaints.
        pools: Masks of each image, [B, n, 1, H, W], 1 where the editor repaints; one is drawn in every step.
        timestep: t*.
        norm: Of the predicted noise.
        sample: Whether the posterior is sampled, as in the released code, or its mean taken.
        two_stages: Whether the U-Net's graph is freed before the encoder's is built.
    """

    host: Host
    pools: Tensor
    timestep: int
    norm: Norm = "l2"
    sample: bool = True
    two_stages: bool = False

    def __post_init__(self) -> None:
        check_inpaints(self.host)

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the gradient, which is 0 where the drawn mask repaints, and the objective."""
        count = self.pools.shape[1]
        picks = [int(torch.randint(count, (1,), generator=g)) if count > 1 else 0 for g in generators]
        mask = torch.stack([pool[pick] for pool, pick in zip(self.pools, picks, strict=True)]).to(images)
        shape = self.host.latent_shape(images)
        spread = draw_normal(generators, shape, images) if self.sample else None
        start = draw_normal(generators, shape, images) * _init_sigma(self.host)

        def loss(masked: Tensor) -> Tensor:
            return -noise_norms(self.host.predict(start, self.timestep, masked, mask), self.norm)

        return through_encoder(self.host, images, mask, spread, loss, self.two_stages)


def _init_sigma(host: Host) -> float:
    return float(getattr(host.scheduler, "init_noise_sigma", 1.0))
