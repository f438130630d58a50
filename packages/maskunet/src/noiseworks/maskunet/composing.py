"""Masked weights beside other methods on one pipeline, for `noiseworks bench compose`."""

from functools import cache
from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.maskunet.masking import MaskHandle, MaskNet

SCENES, STEPS, SEED = 256, 40, 400


@cache
def trained_masks(pipe: "DiffusionPipeline") -> "MaskNet":
    """Return masks after a short training on the testbed's scenes, once for a pipeline as it is."""
    from noiseworks.maskunet import Training, train_masks
    from noiseworks.maskunet.evidence import BATCH, MASKS, RATE, examples_of

    settings = {"batch_size": BATCH, "learning_rate": RATE, "ema": 0.9, "device": pipe.device.type}
    training = Training(max_steps=STEPS, seed=SEED, **settings)
    return train_masks(pipe, examples_of(pipe, SCENES, SEED), MASKS, training, progress=False)


def attach_masks(pipe: "DiffusionPipeline") -> "MaskHandle":
    """Attach them as they are used: without drawn bits."""
    return trained_masks(pipe).attach(pipe)


COMPOSABLE = Composable("maskunet", IMAGE_PIPELINE, attach_masks, saves=False)
