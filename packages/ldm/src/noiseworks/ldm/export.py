"""From a trained model to the directory of a real diffusers pipeline."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.core.artifacts import atomic_directory, check_writable
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning import TextConditioner

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.ldm.diffusion import LatentDiffusionTrainer


def to_pipeline(trainer: "LatentDiffusionTrainer", *, ema: bool = True) -> "DiffusionPipeline":
    """Return the pipeline of a trained model; it holds copies, so training may go on.

    Args:
        trainer: The trained module, with its `vae`.
        ema: Whether the averaged weights are taken.

    Returns:
        `StableDiffusionPipeline` for a text conditioner.

    Raises:
        InputError: When there is no vae, no scale factor yet, or no pipeline for the conditioner.
    """
    if trainer.vae is None:
        raise InputError(
            "a pipeline needs the first stage: set the trainer's vae to the one whose latents it learned"
        )
    if torch.isnan(trainer.scale_factor):
        raise InputError(
            "the scale factor is not known yet: train at least one batch, or give scale_factor=<number>"
        )
    unet = copy.deepcopy(trainer.ema["unet"] if ema else trainer.unet).requires_grad_(True).eval()
    vae = copy.deepcopy(trainer.vae)
    vae.register_to_config(scaling_factor=float(trainer.scale_factor))
    conditioner = trainer.conditioner
    if ema and "conditioner" in trainer.ema:
        conditioner = trainer.ema["conditioner"]
    if isinstance(conditioner, TextConditioner):
        from diffusers import StableDiffusionPipeline

        text_encoder = copy.deepcopy(conditioner.text_encoder).requires_grad_(True).eval()
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=conditioner.tokenizer,
            unet=unet,
            scheduler=copy.deepcopy(trainer.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    raise InputError(f"no pipeline for the conditioner {type(conditioner).__name__}")


def export_diffusers(trainer: "LatentDiffusionTrainer", path: str | Path, *, ema: bool = True) -> Path:
    """Write a trained model as the directory of its diffusers pipeline (see `to_pipeline`), atomically.

    Args:
        trainer: The trained module.
        path: The directory to make or replace.
        ema: Whether the averaged weights are taken.

    Returns:
        The directory.
    """
    path = check_writable(path)
    pipeline = to_pipeline(trainer, ema=ema)
    with atomic_directory(path) as folder:
        pipeline.save_pretrained(folder)
    return path
