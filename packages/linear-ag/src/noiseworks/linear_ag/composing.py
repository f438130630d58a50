"""Adaptive Guidance beside other methods on one pipeline, for `noiseworks bench compose`."""

from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.linear_ag.diffusers import GuidanceHandle

THRESHOLD = 0.99538  # what the claim's calibration finds for the testbed's model


def attach_adaptive(pipe: "DiffusionPipeline") -> "GuidanceHandle":
    """Attach Adaptive Guidance with the testbed's threshold."""
    from noiseworks.linear_ag import AdaptiveGuidance, attach

    return attach(pipe, AdaptiveGuidance(THRESHOLD))


COMPOSABLE = Composable("linear-ag", IMAGE_PIPELINE, attach_adaptive)
