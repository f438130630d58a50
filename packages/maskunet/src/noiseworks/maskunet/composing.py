"""Masked weights beside other methods on one pipeline, for `noiseworks bench compose`."""

from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.maskunet.masking import MaskHandle


def attach_masks(pipe: "DiffusionPipeline") -> "MaskHandle":
    """Attach drawn masks of an untrained generator, with 0.06 % of the weights off, other ones at every call."""
    from noiseworks.maskunet import MaskConfig, MaskNet

    return MaskNet.of(pipe, MaskConfig(init_logit=2.0)).attach(pipe, stochastic=True)


COMPOSABLE = Composable("maskunet", IMAGE_PIPELINE, attach_masks, saves=False)
