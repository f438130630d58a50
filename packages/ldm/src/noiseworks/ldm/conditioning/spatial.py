"""Conditioners whose maps are joined to the latent: semantics, super-resolution, inpainting (section 4.3)."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import Condition, Conditioner
from torch import Tensor, nn


def _drop_maps(maps: Tensor, drop: Tensor | None) -> Tensor:
    """Return maps `[B, C, h, w]` with the rows marked by `drop` `[B]` set to 0, the null condition."""
    return maps if drop is None else maps * ~drop.view(-1, 1, 1, 1)


def check_rgb(name: str, images: Tensor) -> None:
    """Refuse images that are not `[B, 3, H, W]`.

    Raises:
        InputError: Naming the shape.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"{name} must be RGB, [B, 3, H, W], got shape {tuple(images.shape)}; convert grayscale to RGB"
        )


def check_mask(mask: Tensor) -> None:
    """Refuse a mask that is not `[B, 1, H, W]` with values in [0, 1].

    Raises:
        InputError: Naming shape or range.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise InputError(f"a mask must have one channel, [B, 1, H, W], got shape {tuple(mask.shape)}")
    if mask.min() < 0 or mask.max() > 1:
        raise InputError(f"a mask must lie in [0, 1], got {mask.min():g}..{mask.max():g}")


class SemanticConditioner(Conditioner, ModelMixin, ConfigMixin):
    """A map of classes, shrunk to the latent's size, joined to its channels (the paper's semantic synthesis).

    The paper's order, ½-scale bilinear steps and then a 1x1 convolution from K to `out_channels`, is
    computed the other way round: both are linear, and a 1x1 convolution of a one-hot map is a table
    look-up.

    Batch key: `"segmentation"`, int64 `[B, H, W]` in [0, K).

    Args:
        num_classes: K (182 for COCO-Stuff).
        out_channels: Channels joined to the latent.
        factor: f, a power of two; the number of halvings is log2 f.
    """

    kind = "concat"

    @register_to_config
    def __init__(self, num_classes: int = 182, out_channels: int = 3, factor: int = 4) -> None:
        super().__init__()
        check_number("num_classes", num_classes, low=1, integer=True)
        if factor < 1 or factor & (factor - 1):
            raise InputError(f"factor must be a power of two, got {factor}")
        # A 1x1 convolution without bias: row k of the table is column k of its weight.
        bound = num_classes**-0.5
        self.table = nn.Parameter(torch.empty(num_classes, out_channels).uniform_(-bound, bound))

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return maps `[B, out_channels, H / factor, W / factor]`; dropped rows are 0.

        Raises:
            InputError: When the map is not `[B, H, W]` of classes below K, or its size no multiple of
                `factor`.
        """
        labels, factor = batch["segmentation"], self.config.factor
        if labels.ndim != 3 or labels.is_floating_point():
            raise InputError(
                f"a segmentation is int64 [B, H, W], got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= self.config.num_classes:
            raise InputError(
                f"classes must lie in 0..{self.config.num_classes - 1}, got up to {labels.max().item()}"
            )
        if labels.shape[1] % factor or labels.shape[2] % factor:
            raise InputError(f"the map's sides must be multiples of {factor}, got {tuple(labels.shape[1:])}")
        maps = self.table[labels].permute(0, 3, 1, 2)
        # A bilinear step to half size averages 2x2 pixels; so do all steps together over factor x factor.
        maps = nn.functional.avg_pool2d(maps, factor)
        return Condition(concat=_drop_maps(maps, drop))


class LowResConditioner(Conditioner):
    """The low-resolution image itself, joined to the latent (the paper's super-resolution, factor f).

    Batch key: `"low_res"`, `[B, 3, h, w]` in [-1, 1], of the latent's size.
    """

    kind = "concat"

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return the images `[B, 3, h, w]`; dropped rows are 0.

        Raises:
            InputError: When the images are not RGB.
        """
        images = batch["low_res"]
        check_rgb("low_res", images)
        return Condition(concat=_drop_maps(images, drop))


class MaskConditioner(Conditioner):
    """The masked image, encoded, and the mask, joined to the latent (the paper's inpainting).

    Batch keys: `"image"` `[B, 3, H, W]` in [-1, 1] and `"mask"` `[B, 1, H, W]` in [0, 1], binarised at 0.5;
    **1 is the hole** to be filled. The hole is -1 (black) in the masked image, and the mask channel is -1
    or 1. In place of the image `"masked_latents"` `[B, C, h, w]` may hold the encoded masked image.

    Args:
        vae: The first stage; a KL posterior gives its mode. It is not trained.
    """

    kind = "concat"

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)

    @staticmethod
    def masked_image(images: Tensor, mask: Tensor) -> Tensor:
        """Return images in [-1, 1] whose hole (mask > 0.5) is -1: 2 (1 - mask) v - 1 for v in [0, 1]."""
        return torch.where(mask > 0.5, -torch.ones((), device=images.device), images)

    @torch.no_grad()
    def encode_masked(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return the latents `[B, C, h, w]` of the masked images."""
        encoded = self.vae.encode(self.masked_image(images, mask))
        return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()

    def forward(self, batch: Mapping[str, Any], drop: Tensor | None = None) -> Condition:
        """Return `[B, C + 1, h, w]`: latents of the masked image and the mask; dropped rows are 0.

        Raises:
            InputError: When the image is not RGB or the mask not single-channel.
        """
        mask = batch["mask"]
        check_mask(mask)
        if "masked_latents" in batch:
            latents = batch["masked_latents"]
        else:
            check_rgb("image", batch["image"])
            latents = self.encode_masked(batch["image"], mask)
        small = nn.functional.interpolate(
            (mask > 0.5).to(latents.dtype), size=latents.shape[-2:], mode="nearest"
        )
        maps = torch.cat([latents, 2 * small - 1], dim=1)
        return Condition(concat=_drop_maps(maps, drop))


def low_resolution(images: Tensor, factor: int) -> Tensor:
    """Return images shrunk by antialiased bicubic interpolation, `[B, 3, H / factor, W / factor]` in [-1, 1].

    Args:
        images: `[B, 3, H, W]` in [-1, 1].
        factor: Down-sampling factor.

    Raises:
        InputError: When a side is no multiple of `factor`.
    """
    if images.shape[-2] % factor or images.shape[-1] % factor:
        raise InputError(f"the images' sides must be multiples of {factor}, got {tuple(images.shape[-2:])}")
    shrunk = nn.functional.interpolate(images, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return shrunk.clamp(-1, 1)


def random_masks(rows: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return masks `[rows, 1, height, width]` in {0, 1}, 1 the hole: boxes and thick strokes.

    Each mask is the union of one to three random boxes and up to three strokes between random points.
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    y = (torch.arange(height) + 0.5).view(1, -1, 1) / height
    x = (torch.arange(width) + 0.5).view(1, 1, -1) / width
    holes = torch.zeros(rows, height, width, dtype=torch.bool)
    for piece in range(3):
        center, half = draw(rows, 2, 1, 1), 0.1 + 0.2 * draw(rows, 2, 1, 1)
        box = ((y - center[:, 0]).abs() < half[:, 0]) & ((x - center[:, 1]).abs() < half[:, 1])
        start, end, radius = draw(rows, 2, 1, 1), draw(rows, 2, 1, 1), 0.02 + 0.06 * draw(rows, 1, 1)
        way = end - start
        length = (way.square().sum(1)).clamp(min=1e-6)
        along = (((y - start[:, 0]) * way[:, 0] + (x - start[:, 1]) * way[:, 1]) / length).clamp(0, 1)
        distance = (y - start[:, 0] - along * way[:, 0]) ** 2 + (x - start[:, 1] - along * way[:, 1]) ** 2
        used = draw(2, rows, 1, 1) < (1.0 if piece == 0 else 0.5)
        holes |= (box & used[0]) | ((distance < radius**2) & used[1])
    return holes[:, None].float()
