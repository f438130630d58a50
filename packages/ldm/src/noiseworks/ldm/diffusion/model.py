"""What sampling needs of a trained latent diffusion model, whichever way it was obtained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import Conditioner
from noiseworks.ldm.diffusion.tiling import Tiles, tiled_decode, tiled_encode
from torch import Tensor, nn

if TYPE_CHECKING:
    from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer


@dataclass(frozen=True)
class LatentModel:
    """What sampling needs.

    Attributes:
        unet: The denoiser.
        vae: The first stage (`AutoencoderKL` or `VQModel`).
        scheduler: A diffusers scheduler, read for ᾱ and `prediction_type`.
        conditioner: None for an unconditional model.
        scale_factor: What first-stage latents are multiplied with.
    """

    unet: nn.Module
    vae: nn.Module
    scheduler: Any
    conditioner: Conditioner | None = None
    scale_factor: float = 1.0

    @classmethod
    def from_trainer(cls, trainer: "LatentDiffusionTrainer", *, ema: bool = True) -> "LatentModel":
        """Return the model of a trainer in evaluation mode, with the averaged weights when `ema`.

        Raises:
            InputError: When the trainer has no vae, or no scale factor yet.
        """
        if trainer.vae is None:
            raise InputError("sampling needs the first stage: set the trainer's vae")
        if torch.isnan(trainer.scale_factor):
            raise InputError(
                "the scale factor is unknown: train at least one batch, or give scale_factor=<number>"
            )
        conditioner = (
            trainer.ema["conditioner"] if ema and "conditioner" in trainer.ema else trainer.conditioner
        )
        unet = trainer.ema["unet"] if ema else trainer.unet
        return cls(unet.eval(), trainer.vae, trainer.scheduler, conditioner, float(trainer.scale_factor))

    @property
    def factor(self) -> int:
        """Pixels of the image per latent pixel, f."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) for an image size.

        Raises:
            InputError: When a side is no multiple of f · 2^(levels - 1).
        """
        multiple = self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name, side in (("height", height), ("width", width)):
            if side < multiple or side % multiple:
                raise InputError(
                    f"{name} must be a positive multiple of {multiple} (f = {self.factor} times the U-Net's "
                    f"down-sampling), got {side}"
                )
        return self.unet.config.out_channels, height // self.factor, width // self.factor

    def encode(self, images: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return scaled latents (the posterior's mode, or the un-quantised code) of images in [-1, 1]."""
        return tiled_encode(self.vae, images, tiles or Tiles(10**6, 10**6), self.factor) * self.scale_factor

    def decode(self, latents: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return images `[B, 3, H, W]` in [-1, 1] of scaled latents; a VQ model quantises inside."""
        images = tiled_decode(
            self.vae, latents / self.scale_factor, tiles or Tiles(10**6, 10**6), self.factor
        )
        return images.clamp(-1, 1)
