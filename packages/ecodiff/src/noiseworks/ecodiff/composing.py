"""Masked units beside other methods on one pipeline, for `noiseworks bench compose`."""

from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.kits.attachments import Attachment

KEEP = 0.9


def attach_pruned(pipe: "DiffusionPipeline") -> "Attachment":
    """Mask a tenth of the prunable parameters, chosen by magnitude, which needs no calibration."""
    from noiseworks.ecodiff import Cut, MaskSet, select
    from noiseworks.ecodiff.importance import magnitude_scores
    from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
    from noiseworks.kits.diffusers_hosts.units import find_units

    model = denoiser_of(pipe)
    units = find_units(model)
    kept = select(magnitude_scores(model, units), units, Cut(target_prunable=KEEP))
    return MaskSet.new(units, 1.0).attach(model, units, kept=kept)


# Masking changes shapes only when the units are removed, so nothing is saved here.
COMPOSABLE = Composable("ecodiff", IMAGE_PIPELINE, attach_pruned, saves=False)
