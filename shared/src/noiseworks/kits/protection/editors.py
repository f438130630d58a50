"""The editors that protected images are tried on: inpainting, SDEdit, instructions. Seeds belong to images.

An original and its protected copy are edited from the same noise, so that what differs is the protection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.protection.engine import draw_normal
from noiseworks.kits.protection.hosts import Host
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Call:
    """How a pipeline is called.

    Attributes:
        num_inference_steps: Its steps.
        guidance_scale: Its guidance.
        seed: Image i has the noise of seed + i.
        batch_size: Images at once.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    seed: int = 0
    batch_size: int = 16


def check_editor(pipe: "DiffusionPipeline", masks: bool) -> None:
    """Refuse a pipeline that cannot edit under masks, or one that only does.

    Raises:
        UnsupportedHostError: Naming what it lacks.
    """
    latent, taken = pipe.vae.config.latent_channels, pipe.unet.config.in_channels
    if masks and "mask_image" not in signature(pipe.__call__).parameters:
        raise UnsupportedHostError(
            f"{type(pipe).__name__} takes no mask: name an inpainting pipeline as the editor"
        )
    if not masks and taken != latent:
        raise UnsupportedHostError(
            f"the editor's U-Net takes {taken} channels and pictures have {latent}: an inpainting model edits under "
            "masks only (diffusionguard eval); name one for text or image-to-image"
        )


def inpaint(
    pipe: "DiffusionPipeline", images: Tensor, masks: Tensor, prompts: Sequence[str], call: Call = Call()
) -> Tensor:
    """Return images whose masked part is repainted by an inpainting pipeline, [n, 3, H, W] in [0, 1].

    Args:
        pipe: The pipeline.
        images: [n, 3, H, W] in [0, 1].
        masks: [n, 1, H, W], 1 where it repaints.
        prompts: One an image.
        call: How it is called.

    Raises:
        UnsupportedHostError: When it takes no masks.
    """
    check_editor(pipe, masks=True)
    height, width = images.shape[-2:]
    return _batched(
        images,
        call,
        lambda rows, generators: (
            pipe(
                list(prompts[rows]),
                image=2 * images[rows] - 1,
                mask_image=masks[rows],
                height=height,
                width=width,
                num_inference_steps=call.num_inference_steps,
                guidance_scale=call.guidance_scale,
                generator=generators,
                output_type="pt",
            ).images
        ),
    )


def sdedit(
    pipe: "DiffusionPipeline", images: Tensor, prompts: Sequence[str], strength: float, call: Call = Call()
) -> Tensor:
    """Return images that were noised to a strength and denoised under prompts, [n, 3, H, W] in [0, 1].

    Source: SDEdit, arXiv 2108.01073. The image-to-image pipeline is made of the parts of `pipe`.

    Args:
        pipe: A text-to-image or image-to-image pipeline.
        images: [n, 3, H, W] in [0, 1].
        prompts: One an image.
        strength: Share of the schedule, above 0.
        call: How it is called.

    Raises:
        InputError: When the pipeline's schedule has fewer steps than it takes (models of few steps).
        UnsupportedHostError: When it edits under masks only.
    """
    from diffusers import AutoPipelineForImage2Image

    check_editor(pipe, masks=False)
    steps = max(call.num_inference_steps, round(1 / strength + 0.5))
    most = pipe.scheduler.config.get("original_inference_steps") or steps
    if steps > most:
        raise InputError(
            f"this model's schedule has {most} steps, and an edit at strength {strength:g} would take {steps}: "
            "lower num_inference_steps, or raise strengths"
        )
    editor = AutoPipelineForImage2Image.from_pipe(pipe)
    editor.set_progress_bar_config(disable=True)
    return _batched(
        images,
        call,
        lambda rows, generators: (
            editor(
                list(prompts[rows]),
                image=2 * images[rows] - 1,
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=call.guidance_scale,
                generator=generators,
                output_type="pt",
            ).images
        ),
    )


def instruct(
    pipe: "DiffusionPipeline",
    images: Tensor,
    prompts: Sequence[str],
    image_guidance_scale: float = 1.5,
    call: Call = Call(),
) -> Tensor:
    """Return images edited under instructions by an InstructPix2Pix pipeline, [n, 3, H, W] in [0, 1]."""
    return _batched(
        images,
        call,
        lambda rows, generators: (
            pipe(
                list(prompts[rows]),
                image=2 * images[rows] - 1,
                num_inference_steps=call.num_inference_steps,
                guidance_scale=call.guidance_scale,
                image_guidance_scale=image_guidance_scale,
                generator=generators,
                output_type="pt",
            ).images
        ),
    )


@torch.no_grad()
def _batched(images: Tensor, call: Call, edit: Callable[[slice, list[torch.Generator]], Tensor]) -> Tensor:
    parts = []
    for start in range(0, len(images), call.batch_size):
        rows = slice(start, min(start + call.batch_size, len(images)))
        generators = [torch.Generator().manual_seed(call.seed + i) for i in range(rows.start, rows.stop)]
        parts.append(edit(rows, generators).float().cpu().clamp(0, 1))
    return torch.cat(parts)


def denoise_from(
    host: Host, images: Tensor, share: float, generators: Sequence[torch.Generator], grid: int = 100
) -> Tensor:
    """Return images noised to a share of the schedule and denoised by DDIM over a uniform grid, no guidance.

    Grid values are 1, 11, ... 991 (for 100 of 1000); the noise is that of value j = floor(grid * share), with which
    the first denoising step is labelled as well.

    Args:
        host: A host that does not inpaint.
        images: [n, 3, H, W] in [0, 1].
        share: Below 1.
        generators: One an image.
        grid: Points of the grid.
    """
    latents = host.encode(images)
    abar = host.alphas_cumprod.to(latents)
    values = [1 + i * (len(abar) // grid) for i in range(int(grid * share) + 1)]
    noise = draw_normal(generators, latents.shape[1:], latents)
    latents = host.noised(latents, noise, torch.full((len(latents),), values[-1]))
    for index in range(len(values) - 1, 0, -1):
        level, before = abar[values[index]], abar[values[index - 1]]
        predicted = host.predict(latents, values[index])
        clean = (latents - (1 - level).sqrt() * predicted) / level.sqrt()
        latents = before.sqrt() * clean + (1 - before).sqrt() * predicted
    last = abar[values[0]]
    predicted = host.predict(latents, values[0])
    return host.decode((latents - (1 - last).sqrt() * predicted) / last.sqrt()).clamp(0, 1)


def one_step(host: Host, images: Tensor, share: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Return images noised to timestep floor(T * share) and denoised in one step; at 0 the first stage's copy."""
    latents = host.encode(images)
    step = int(len(host.alphas_cumprod) * share)
    if step > 0:
        noise = draw_normal(generators, latents.shape[1:], latents)
        noisy = host.noised(latents, noise, torch.full((len(latents),), step))
        level = host.alphas_cumprod.to(latents)[step]
        latents = (noisy - (1 - level).sqrt() * host.predict(noisy, step)) / level.sqrt()
    return host.decode(latents).clamp(0, 1)
