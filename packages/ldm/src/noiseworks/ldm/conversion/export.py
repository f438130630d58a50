"""From a trained model to the directory of a real diffusers pipeline."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory, check_folder
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import (
    ClassConditioner,
    Conditioner,
    LayoutConditioner,
    TextConditioner,
)
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.ldm.diffusion.trainer import LatentDiffusionTrainer


def to_pipeline(trainer: "LatentDiffusionTrainer", *, ema: bool = True) -> "DiffusionPipeline":
    """Return the pipeline of a trained model; it holds copies, so training may go on.

    Args:
        trainer: The trained module, with its `vae`.
        ema: Whether the averaged weights are taken.

    Returns:
        A diffusers pipeline where it has one for the task: `StableDiffusionPipeline` (text),
        `LDMTextToImagePipeline` (text, another encoder than CLIP, f = 8 and 77 tokens, which that class
        fixes), `LDMPipeline` (unconditional), `LDMSuperResolutionPipeline` (scale factor 1). Else one of
        `noiseworks.ldm.conversion.pipelines`.

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
    return assemble(unet, vae, copy.deepcopy(trainer.scheduler), conditioner)


def assemble(
    unet: torch.nn.Module, vae: torch.nn.Module, scheduler: Any, conditioner: Conditioner | None
) -> "DiffusionPipeline":
    """Return the pipeline that fits a conditioner; see `to_pipeline`. Weights of the conditioner are copied.

    Raises:
        InputError: When there is no pipeline for the conditioner.
    """
    import diffusers
    from noiseworks.ldm.conversion import pipelines

    if isinstance(conditioner, TextConditioner):
        return _text_pipeline(unet, vae, scheduler, conditioner)
    if conditioner is None:
        return diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler)
    if isinstance(conditioner, LowResConditioner):
        if vae.config.scaling_factor == 1.0:
            return diffusers.LDMSuperResolutionPipeline(vqvae=vae, unet=unet, scheduler=scheduler)
        return pipelines.UpscalePipeline(unet, vae, scheduler)
    if isinstance(conditioner, MaskConditioner):
        return pipelines.InpaintPipeline(unet, vae, scheduler)
    own = {
        ClassConditioner: pipelines.ClassToImagePipeline,
        LayoutConditioner: pipelines.LayoutToImagePipeline,
        SemanticConditioner: pipelines.SemanticToImagePipeline,
    }
    if type(conditioner) not in own:
        known = ", ".join(
            kind.__name__ for kind in (TextConditioner, LowResConditioner, MaskConditioner, *own)
        )
        raise InputError(f"no pipeline for the conditioner {type(conditioner).__name__}; there are: {known}")
    copied = copy.deepcopy(conditioner).requires_grad_(True).eval()
    return own[type(conditioner)](unet, vae, scheduler, copied)


def _text_pipeline(
    unet: torch.nn.Module, vae: torch.nn.Module, scheduler: Any, conditioner: TextConditioner
) -> "DiffusionPipeline":
    import diffusers

    encoder = copy.deepcopy(conditioner.text_encoder).requires_grad_(True).eval()
    tokenizer = conditioner.tokenizer
    is_clip = type(encoder).__name__.startswith("CLIP")
    if not is_clip and conditioner.max_length == 77 and len(vae.config.block_out_channels) == 4:
        return diffusers.LDMTextToImagePipeline(
            vqvae=vae, bert=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
    # Latent, mask and masked image's latent: the inpainting model of captions.
    inpaints = unet.config.in_channels == 2 * vae.config.latent_channels + 1
    kind = diffusers.StableDiffusionInpaintPipeline if inpaints else diffusers.StableDiffusionPipeline
    return kind(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_diffusers(trainer: "LatentDiffusionTrainer", path: str | Path, *, ema: bool = True) -> Path:
    """Write a trained model as the directory of its diffusers pipeline (see `to_pipeline`), atomically.

    Args:
        trainer: The trained module.
        path: The directory to make or replace.
        ema: Whether the averaged weights are taken.

    Returns:
        The directory.
    """
    path = check_folder(path, HOST_FOLDER)
    pipeline = to_pipeline(trainer, ema=ema)
    with atomic_directory(path, HOST_FOLDER) as folder:
        pipeline.save_pretrained(folder)
    return path
