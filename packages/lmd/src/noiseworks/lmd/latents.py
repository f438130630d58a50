"""Latents of a frozen autoencoder: the mode of its posterior, encoded once and kept, and images of latents."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError
from noiseworks.kits.backbones.augmenting import crop_and_flip
from noiseworks.kits.backbones.latents import fingerprint, load_autoencoder
from noiseworks.lmd.options import Latents
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KIND = "lmd/latents"
BATCH = 64
ROUNDING = 1e-4  # of values at the ends of the range


class Space(nn.Module):
    """Images and what is masked of them: an autoencoder's latents, or the images themselves.

    Args:
        vae: A frozen autoencoder; None masks pixels.
        scaled: Whether latents are multiplied by its scaling factor.
    """

    def __init__(self, vae: "AutoencoderKL | None", scaled: bool = False) -> None:
        super().__init__()
        self.vae, self.scaled = vae, scaled

    @classmethod
    def load(cls, latents: Latents) -> "Space":
        """Return the space that the options name.

        Raises:
            InputError: When there is no such autoencoder, or one of another class.
        """
        if latents.vae == "pixels":
            return cls(None)
        return cls(load_autoencoder(latents.vae, kinds=("AutoencoderKL",)), latents.scale_latents)

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent pixel."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def fingerprint(self) -> str:
        """A short hash of the autoencoder's weights; pixels have none."""
        return "" if self.vae is None else fingerprint(self.vae)

    def check_images(self, images: Tensor) -> None:
        """Refuse images that are not (B, C, H, W) in [-1, 1] with the autoencoder's channels and sides.

        Raises:
            InputError: Saying what they must be.
        """
        largest = float(images.abs().max())
        if not largest <= 1 + ROUNDING:
            raise InputError(f"images must lie in [-1, 1], got a value of size {largest:.4g}")
        if self.vae is None:
            return
        channels = self.vae.config.in_channels
        if images.shape[1] != channels or any(side % self.factor for side in images.shape[2:]):
            raise InputError(
                f"the autoencoder takes images of {channels} channels and sides that are multiples of {self.factor}, "
                f"got {tuple(images.shape[1:])}"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mode of the posterior, (B, c, h, w), of images (B, C, H, W) in [-1, 1], batch by batch.

        Raises:
            InputError: On images of another range or shape.
            NonFiniteError: When latents overflow.
        """
        self.check_images(images)
        if self.vae is None:
            return images
        like = next(self.vae.parameters())
        parts = [self.vae.encode(part.to(like)).latent_dist.mode().to(images) for part in images.split(BATCH)]
        found = torch.cat(parts)
        check_finite("the latents", found)
        if self.scaled:
            found = (found - self._shift) * self.vae.config.scaling_factor
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1] of latents."""
        if self.vae is None:
            return latents.clamp(-1, 1)
        if self.scaled:
            latents = latents / self.vae.config.scaling_factor + self._shift
        like = next(self.vae.parameters())
        parts = [self.vae.decode(part.to(like)).sample.to(latents) for part in latents.split(BATCH)]
        return torch.cat(parts).clamp(-1, 1)

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0


def views_of(images: Tensor, views: int, *, crop: float = 1.0, flip: bool = False, seed: int = 0) -> Tensor:
    """Return views of images, (views n, C, H, W): all of the first view, all of the second, ...

    Args:
        images: (n, C, H, W).
        views: Crops and mirror images of each.
        crop: Least share of the area that a crop keeps; 1 for no crops.
        flip: Whether half of them are mirrored.
        seed: Of both.
    """
    change = crop_and_flip(crop, flip)
    if change is None:
        return images
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([change({"x": images}, generator)["x"] for _ in range(views)])


def cached_latents(folder: str | Path, space: Space, images: Tensor, *, about: dict[str, object]) -> Tensor:
    """Return the latents of images, float32, from a folder; encoded and kept there in half precision if it lacks them.

    Without this nearly all time of a training goes into the frozen encoder.

    Args:
        folder: An artifact that is made, or that an earlier call made from the same images.
        space: The autoencoder.
        images: (n, C, H, W) in [-1, 1].
        about: Further settings that made the images what they are, kept beside them.

    Raises:
        InputError: When the folder holds latents of other images or of another autoencoder.
        NonFiniteError: When latents overflow half precision.
    """
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:16]
    identity = {"vae": space.fingerprint, "scaled": space.scaled, "images": digest, "rows": len(images)}
    if Path(folder).exists():
        config, tensors = load_artifact(folder, KIND)
        if {key: config.get(key) for key in identity} != identity:
            raise InputError(
                f"{folder} holds latents of other images, views or another autoencoder; name another folder"
            )
        return tensors["latents"].float()
    found = space.encode(images).half()
    check_finite("the latents in half precision", found)
    save_artifact(folder, KIND, identity | about, {"latents": found})
    return found.float()
