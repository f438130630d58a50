"""A guided pipeline beside other methods on it, for `noiseworks bench compose`."""

from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.kits.diffusers_hosts.hooks import HookHandle
    from noiseworks.ppap.guide import Guide

SCALE = 0.02


def brightness_guide() -> "Guide":
    """Return a depth-style guide without weights, whose maps are the brightness of an image."""
    from noiseworks.ppap.guide import Guide
    from noiseworks.ppap.tasks import Depth
    from torch import Tensor, nn

    class Brightness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(1)

    return Guide(Brightness(), Depth())


def attach_guide(pipe: "DiffusionPipeline") -> "HookHandle":
    """Guide towards dark images; a guided step costs a pass through the decoder, forth and back."""
    import torch
    from noiseworks.ppap import NoisyGuide, Strength, attach

    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    strength = Strength(SCALE, norm="per-sample")
    return attach(pipe, NoisyGuide(brightness_guide()), torch.full((side, side), -1.0), strength)


COMPOSABLE = Composable("ppap", IMAGE_PIPELINE, attach_guide, saves=False)
