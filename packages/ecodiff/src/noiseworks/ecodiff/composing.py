"""Masked units beside other methods on one pipeline, for `noiseworks bench compose`."""

from functools import cache
from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import GUIDANCE_SCALE, IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.kits.attachments import Attachment
    from torch import Tensor

KEEP = 0.9
PROMPTS, STEPS, SEED = 16, 4, 400


@cache
def learned_scores(pipe: "DiffusionPipeline") -> "dict[str, Tensor]":
    """Return logits learned through a short sampler on training captions, once for a pipeline as it is."""
    from dataclasses import replace

    from noiseworks.bench.testbeds import shapes
    from noiseworks.ecodiff import Runs, Sampling, learn_masks
    from noiseworks.ecodiff.evidence import LEARNING
    from noiseworks.kits.diffusers_hosts import denoiser_of, find_units

    captions = [shapes.caption(scene) for scene in shapes.sample_scenes(PROMPTS, SEED, "train")]
    runs = Runs(pipe, captions, Sampling(STEPS, GUIDANCE_SCALE, batch_size=4, seed=SEED))
    masks = learn_masks(runs, find_units(denoiser_of(pipe)), replace(LEARNING, epochs=1), progress=False)
    return {path: values.detach().cpu() for path, values in masks.logits.items()}


def attach_pruned(pipe: "DiffusionPipeline") -> "Attachment":
    """Mask the tenth of the prunable parameters that learned masks rank lowest."""
    from noiseworks.ecodiff import Cut, MaskSet, select
    from noiseworks.kits.diffusers_hosts import denoiser_of, find_units

    units = find_units(denoiser_of(pipe))
    kept = select(learned_scores(pipe), units, Cut(target_prunable=KEEP))
    return MaskSet.new(units, 1.0).attach(denoiser_of(pipe), units, kept=kept)


# Masking changes shapes only when the units are removed, so nothing is saved here.
COMPOSABLE = Composable("ecodiff", IMAGE_PIPELINE, attach_pruned, saves=False)
